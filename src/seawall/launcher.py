"""How many processes a launcher (`torchrun`, `accelerate launch`) has started; imports nothing heavy."""

from __future__ import annotations

import os

from seawall.errors import ConfigError


def launched_processes() -> int:
    """Number of processes by the launcher's variable `WORLD_SIZE`; 1 without a launcher.

    Raises:
        ConfigError: the variable holds no number.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("WORLD_SIZE in the environment is wrong", got=text, expected="a number of processes")
    return int(text)


def is_launched() -> bool:
    """Whether a launcher has started several processes."""
    return launched_processes() > 1
