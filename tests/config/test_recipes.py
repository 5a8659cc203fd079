"""Every shipped recipe parses, holds the paper's numbers, and the lab recipe is the one inside the package."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from places import REPOSITORY
from seawall.config import Recipe, dump_resolved, load_recipe, recipe_text

RECIPES = REPOSITORY / "recipes"


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_a_shipped_recipe_parses_and_is_called_as_its_file(file: Path) -> None:
    assert load_recipe(file).name == file.stem


def test_the_three_recipes_are_there() -> None:
    assert {"lab.yaml", "olmoe-1b-7b.yaml", "qwen3-30b-a3b.yaml"} <= {file.name for file in RECIPES.glob("*.yaml")}


def test_no_recipe_is_the_lab_recipe() -> None:
    assert load_recipe(None) == load_recipe(RECIPES / "lab.yaml")
    assert recipe_text(None) == (RECIPES / "lab.yaml").read_text("utf-8")
    assert resources.files("seawall.config").joinpath("lab.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "model", "selected", "routed"),
    [
        ("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0125-Instruct", 128, 16 * 64),
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 768, 48 * 128),
    ],
)
def test_the_papers_numbers(name: str, model: str, selected: int, routed: int) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.model.id == model
    assert recipe.model.dtype == "bfloat16"
    assert recipe.select.k == selected == routed * 0.125
    assert (recipe.repair.expert.lr, recipe.repair.router.lr) == (5e-5, 1e-6)
    assert (recipe.repair.rounds, recipe.repair.expert.epochs, recipe.repair.router.epochs) == (3, 1, 1)
    assert recipe.repair.batch_size == 16
    assert recipe.profile.max_new_tokens == 128


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_what_ran_reads_back_as_the_same_recipe(file: Path) -> None:
    recipe = load_recipe(file)
    assert Recipe.model_validate(dump_resolved(recipe)) == recipe


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_hub_model_of_a_recipe_is_pinned_to_a_commit(file: Path) -> None:
    recipe = load_recipe(file)
    models = [recipe.model, recipe.tune.base, recipe.landscape.base, recipe.gene.graft.base]
    found = [model for model in models if model is not None and "/" in model.id]
    assert all(re.fullmatch("[0-9a-f]{40}", model.revision or "") for model in found), found


def test_config_imports_no_torch() -> None:
    code = "import seawall.config, seawall.runs.stage, sys; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_safemoes_numbers() -> None:
    tune = load_recipe(RECIPES / "olmoe-safemoe.yaml").tune
    assert (tune.lora.r, tune.lora.alpha, tune.lora.target_modules) == (8, 8.0, ("q_proj", "v_proj"))
    assert (tune.lr, tune.lr_scheduler_type, tune.epochs, tune.batch_size) == (1e-4, "cosine", 3.0, 32)
    assert tune.contamination == pytest.approx(500 / 5500, abs=1e-4)
    assert (tune.drift_variant, tune.weight, tune.seeds) == ("safemoe", 0.0, (42,))
