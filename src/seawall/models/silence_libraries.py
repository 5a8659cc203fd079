"""Keeping transformers from talking while seawall shows its own progress."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Only errors are logged, Python warnings stay silent, and progress bars show on a terminal only.

    What loading can warn of (weights that are missing, a configuration that does not fit) seawall checks itself and
    raises. Everything is as before on exit.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
