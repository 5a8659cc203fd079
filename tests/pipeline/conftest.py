from __future__ import annotations

from pathlib import Path

import pytest
from planted import write_planted


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the planted model."""
    return write_planted(tmp_path_factory.mktemp("planted"))
