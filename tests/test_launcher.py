"""The launcher's variable: no launcher, one, several, and a value that is no number."""

from __future__ import annotations

import pytest

from seawall.errors import ConfigError
from seawall.launcher import is_launched, launched_processes


@pytest.mark.parametrize(("text", "count"), [(None, 1), ("", 1), ("1", 1), ("8", 8)])
def test_number_of_processes(text: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("WORLD_SIZE", text)
    assert (launched_processes(), is_launched()) == (count, count > 1)


@pytest.mark.parametrize("text", ["two", "-1", "0"])
def test_a_value_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        launched_processes()
