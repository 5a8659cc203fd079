"""The commit of a model in the Hub's cache, and uploads; nothing here uses a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from checkpoints import write_checkpoint
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.models.files import hub
from seawall.models.files.hub import push_folder, resolved_commit
from seawall.models.files.open import Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub with one model, without a network."""
    repository = tmp_path / "hub" / "models--owner--name"
    write_checkpoint(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repository


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_model_of_the_cache_names_the_commit_that_its_revision_resolves_to(cache: Path, revision: str | None) -> None:
    checkpoint = Checkpoint(ModelConfig(id="owner/name", revision=revision))
    assert checkpoint.folder == cache / "snapshots" / COMMIT
    assert checkpoint.commit == COMMIT


@pytest.mark.parametrize("path", [COMMIT, f"snapshots/{COMMIT}", "models--a--b/snapshots/main"])
def test_a_folder_has_no_commit(path: str, tmp_path: Path) -> None:
    assert resolved_commit(tmp_path / path) is None


class FakeApi:
    """A Hub that holds what is uploaded."""

    def __init__(self, *, private: bool = True, error: OSError | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._private, self._error = private, error

    def create_repo(self, repository: str, **settings: Any) -> None:
        self.calls.append((repository, settings))

    def model_info(self, repository: str) -> SimpleNamespace:
        return SimpleNamespace(private=self._private)

    def upload_folder(self, **settings: Any) -> SimpleNamespace:
        if self._error is not None:
            raise self._error
        self.calls.append((settings["repo_id"], settings))
        return SimpleNamespace(oid=COMMIT)


def test_a_folder_goes_to_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert push_folder(tmp_path, "owner/name", private=True, without=("DONE",)) == COMMIT
    (_, created), (_, uploaded) = api.calls
    assert created == {"private": True, "exist_ok": True}
    assert (uploaded["folder_path"], uploaded["ignore_patterns"]) == (tmp_path, ["DONE"])


def test_a_public_repository_is_refused_before_anything_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi(private=False)
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    with pytest.raises(ConfigError, match="is public"):
        push_folder(tmp_path, "owner/name", private=True)
    assert len(api.calls) == 1
    assert push_folder(tmp_path, "owner/name", private=False) == COMMIT


def test_a_failed_upload_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeApi(error=ConnectionError("reset\nby peer")))
    with pytest.raises(ConfigError, match="could not be uploaded to owner/name; got reset") as caught:
        push_folder(tmp_path, "owner/name", private=True)
    assert "\n" not in str(caught.value)
