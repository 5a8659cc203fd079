"""Silences transformers while seawall shows its own progress."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Inside, transformers logs errors alone, Python warnings are hidden, and progress bars need a terminal.

    The problems that loading would warn about (missing weights, a configuration that does not fit) are checked and
    raised by seawall. All settings are restored on exit.
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
