"""Fixtures that several layers' tests share; the modules of this folder are importable by every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from planted import write_planted


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a tiny model that has something to repair."""
    return write_planted(tmp_path_factory.mktemp("planted"))
