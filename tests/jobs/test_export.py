"""The export of a run: what it reads, what it holds in memory, and where it goes."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from planted import FEW_PROMPTS
from seawall.artifacts.store import tensor_digest, tensors_fingerprint
from seawall.config import load_recipe
from seawall.errors import ConfigError
from seawall.jobs.run import run_recipe
from seawall.models.files.open import Checkpoint
from seawall.models.files.parity import compare_in_fresh_process
from seawall.runs.files import file_hash, read_json
from seawall.runs.progress import Quiet
from seawall.shell.model import OpenModel, open_model

FEW = (*FEW_PROMPTS, "select.k=2", "repair.rounds=1", "eval.gold=false")


def _counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Receives the bytes of tensors and of files of tensors that are hashed."""
    counts: Counter[str] = Counter()

    def digest(tensor: Tensor) -> str:
        counts["tensors"] += tensor.nbytes
        return tensor_digest(tensor)

    def all_tensors(tensors: dict[str, Tensor]) -> str:
        counts["tensors"] += sum(tensor.nbytes for tensor in tensors.values())
        return tensors_fingerprint(tensors)

    def file(path: Path) -> str:
        if path.suffix == ".safetensors" and path.name != "profile.safetensors":
            counts[f"{path.parent.name}/{path.name}"] += path.stat().st_size
        return file_hash(path)

    for module in ("artifacts.delta", "models.files.fingerprint"):
        monkeypatch.setattr(f"seawall.{module}.tensor_digest", digest)
    monkeypatch.setattr("seawall.artifacts.delta.tensors_fingerprint", all_tensors)
    for module in ("artifacts.store", "runs.files"):
        monkeypatch.setattr(f"seawall.{module}.file_hash", file)
    return counts


def test_a_finished_run_is_uploaded_once_with_its_card(
    planted: Path, planted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[tuple[set[str], str, dict[str, Any]]] = []

    def push(folder: Path, repository: str, **settings: Any) -> str:
        uploads.append(({path.name for path in folder.iterdir()}, repository, settings))
        return "c0ffee"

    monkeypatch.setattr("seawall.jobs.export.push_folder", push)
    run = shutil.copytree(planted_run, tmp_path / "run")
    recipe = load_recipe(planted, ("export.push_to_hub=me/repaired",))
    for _ in range(2):
        run_recipe(recipe, run, text="", reporter=Quiet())
    [(files, repository, settings)] = uploads
    assert (repository, settings) == ("me/repaired", {"private": True, "without": ("DONE",)})
    assert {"README.md", "model.safetensors", "parity.json"} <= files
    assert read_json(run / "manifest.json")["hub"]["commit"] == "c0ffee"


def test_only_a_verified_checkpoint_may_be_uploaded(planted: Path) -> None:
    with pytest.raises(ConfigError, match="only a verified checkpoint is uploaded"):
        load_recipe(planted, ("export.push_to_hub=me/repaired", "export.verify=false"))


def test_a_run_hashes_at_most_four_times_the_model(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, models = _counted(monkeypatch), list[weakref.ref[Any]]()

    def remembered(checkpoint: Checkpoint, **settings: Any) -> OpenModel:
        opened = open_model(checkpoint, **settings)
        models.append(weakref.ref(opened.model))
        return opened

    def fresh(*args: Any, **settings: Any) -> dict[str, object]:
        # Only one of the two processes holds a model.
        assert settings == {"weights": False}
        assert [model() for model in models] == [None]
        return compare_in_fresh_process(*args, **settings)

    monkeypatch.setattr("seawall.shell.context.open_model", remembered)
    monkeypatch.setattr("seawall.jobs.export.compare_in_fresh_process", fresh)
    run = run_recipe(load_recipe(planted, FEW), tmp_path / "run", text="", reporter=Quiet()).run
    weights = (run.stage("model") / "model.safetensors").stat().st_size
    assert weights <= counts["tensors"] <= 2 * weights
    assert counts.total() <= 4 * weights
