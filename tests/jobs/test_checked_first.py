"""Whatever is wrong with a recipe is met before a folder is made and before weights are loaded, by every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planted_refusal import refusing_by_attention
from refusing_recipe import write_refusing
from seawall.config import load_recipe
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError, DataError, SeawallError
from seawall.jobs.audit import audit_model
from seawall.jobs.evaluate import EvalTarget, evaluate_target
from seawall.jobs.gene import extract_gene
from seawall.jobs.landscape import landscape_recipe
from seawall.jobs.run import run_recipe
from seawall.jobs.steer import steer_recipe
from seawall.jobs.tune import tune_recipe
from seawall.models.files.open import Checkpoint
from seawall.runs.progress import Quiet

Verb = Callable[[Recipe, Path], Any]
VERBS: dict[str, Verb] = {
    "run": lambda recipe, folder: run_recipe(recipe, folder, text="", reporter=Quiet()),
    "eval": lambda recipe, folder: evaluate_target(recipe, EvalTarget(), folder, text="", reporter=Quiet()),
    "audit": lambda recipe, folder: audit_model(recipe, folder, text="", only=["silencing"], reporter=Quiet()),
    "steer": lambda recipe, folder: steer_recipe(recipe, folder, text="", reporter=Quiet()),
    "landscape": lambda recipe, folder: landscape_recipe(recipe, folder, text="", reporter=Quiet()),
    "tune": lambda recipe, folder: tune_recipe(recipe, folder, text="", reporter=Quiet()),
    "gene": lambda recipe, folder: extract_gene(recipe, folder, text="", reporter=Quiet()),
}
ENDPOINT = "base_url: http://127.0.0.1:9/v1, model: m"
MISTAKES: dict[str, tuple[str, type[SeawallError], str]] = {
    "no model": ("model.id=./no-model", ConfigError, "no-model"),
    "no prompts": ("data.harmful={kind: jsonl, path: none.jsonl}", DataError, "none.jsonl"),
    "a damaged attack file": ("data.attack_file=damaged.jsonl", DataError, "damaged.jsonl"),
    "an unset key": (
        f"eval.judge={{kind: rubric, {ENDPOINT}, key_env: SEAWALL_NO_KEY}}",
        ConfigError,
        "SEAWALL_NO_KEY",
    ),
    "no guard": ("eval.judge={kind: guard, model: ./no-guard, format: qwen3guard}", ConfigError, "no-guard"),
    "a member without its guard": (
        "eval.judge={kind: ensemble, judges: [{kind: keyword}, {kind: keyword}, {kind: guard, model: ./no-guard, "
        "format: qwen3guard}]}",
        ConfigError,
        "no-guard",
    ),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusing")
    path = write_refusing(folder, refusing_by_attention())
    (folder / "damaged.jsonl").write_text("{")
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("verb", VERBS)
def test_no_folder_is_made_and_no_weight_is_read(
    verb: str, mistake: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr(Checkpoint, "load", never)
    change, kind, words = MISTAKES[mistake]
    changes = [change, f"landscape.base.id={recipe.parent / 'model'}", "tune.methods=[sft]"]
    with pytest.raises(kind) as caught:
        VERBS[verb](load_recipe(recipe, changes), tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()
