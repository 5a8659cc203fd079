"""An automatic device map of large models at their true shapes, on GPUs of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map
from transformers import AutoModelForCausalLM, PreTrainedConfig

import sparse
from places import REPOSITORY
from seawall.config.load import load_recipe
from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.jobs.plan import plan_recipe
from seawall.jobs.run import STAGES, VERBS_UNTIL
from seawall.models.plan.methods import VERBS
from seawall.models.plan.stages import Moment
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.shell import planned
from seawall.shell.context import Context
from seawall.shell.planned import place_model

RECIPES = REPOSITORY / "recipes"
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("placed")
    for build in (sparse.olmoe_1b_7b, sparse.qwen3_30b_a3b):
        sparse.write_sparse(path / build.__name__, build())
    return path


def _recipe(name: str, model: Path, *changes: str) -> Recipe:
    return load_recipe(RECIPES / name, [f"model.id={model}", *changes])


def _place(recipe: Recipe, verbs: Sequence[str], free: Sequence[int]) -> tuple[Any, dict[str, Any], str]:
    said: list[str] = []
    config = place_model(recipe, verbs, free=free, say=said.append)
    return config.device_map, dict(config.max_memory), said[0]


def _parts(config: PreTrainedConfig, rule: str, limits: dict[str, int]) -> list[float]:
    """The part of the weights on each GPU, as `from_pretrained` maps them with a rule and limits."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    memory: Any = {int(name): limit for name, limit in limits.items()}
    blocks = list(model._no_split_modules)
    if rule == "balanced":
        memory = get_balanced_memory(model, max_memory=memory, no_split_module_classes=blocks)
    placed = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=blocks)
    sizes = compute_module_sizes(model)
    assert set(placed.values()) <= set(memory), "a layer is on no GPU"
    return [sum(sizes[name] for name in placed if placed[name] == gpu) / sizes[""] for gpu in sorted(memory)]


def _fits(moment: Moment, part: float, free: int) -> bool:
    fixed = sum(moment.fixed.values())
    return fixed + part * (sum(moment.terms.values()) - fixed) <= free


def test_one_gpu_where_the_verb_fits_though_its_weights_exceed_70_percent(folder: Path) -> None:
    recipe = _recipe("qwen3-30b-a3b.yaml", folder / "qwen3_30b_a3b")
    device_map, limits, text = _place(recipe, ["eval"], [80 * GB, 80 * GB])
    assert (device_map, limits) == ({"": 0}, {})
    assert text.startswith("placed on one GPU: by its plan eval takes")


@pytest.mark.parametrize(
    ("name", "recipe", "sizes", "rule"),
    [
        ("olmoe_1b_7b", "olmoe-1b-7b.yaml", (24, 24, 24), "balanced"),
        ("qwen3_30b_a3b", "qwen3-30b-a3b.yaml", (80, 80), "balanced"),
        ("qwen3_30b_a3b", "qwen3-30b-a3b.yaml", (24, 80, 48), "sequential"),
    ],
)
def test_a_repair_is_spread_so_that_every_moment_fits_every_gpu(
    folder: Path, name: str, recipe: str, sizes: tuple[int, ...], rule: str
) -> None:
    # The weights of OLMoE, 13.8 GB, are below 70 % of the first GPU: only the training does not fit it.
    free = [size * GB for size in sizes]
    resolved = _recipe(recipe, folder / name)
    device_map, limits, text = _place(resolved, ["run"], free)
    assert (device_map, list(limits)) == (rule, [str(index) for index in range(len(sizes))])
    assert f"spread over {len(sizes)} GPUs" in text
    stages = plan_recipe(resolved, verb="run", memory="80GB").plan.stages
    parts = _parts(getattr(sparse, name)(), device_map, limits)
    assert sum(parts) == pytest.approx(1)
    for part, amount in zip(parts, free, strict=True):
        assert all(_fits(moment, part, amount) for stage in stages for moment in stage.moments)


def test_a_model_without_a_plan_is_placed_by_its_weights(folder: Path) -> None:
    recipe = _recipe("qwen2.5-1.5b-gene.yaml", sparse.write_sparse(folder / "dense", sparse.qwen2_5_1_5b()))
    device_map, limits, text = _place(recipe, ["run"], [GB, GB])
    assert (device_map, limits) == (None, {})
    assert "no plan of run" in text


def test_every_part_of_a_run_is_planned() -> None:
    assert set(VERBS_UNTIL) == set(STAGES)
    assert {verb for verbs in VERBS_UNTIL.values() for verb in verbs} <= set(VERBS)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 24 GB, as far as a placement asks for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(planned, "free_memory", lambda device: 24 * GB)


@pytest.mark.parametrize(
    ("changes", "device_map"),
    [
        ([], "balanced"),
        (["model.device_map=auto"], "balanced"),
        (["model.device_map=sequential"], "sequential"),
        (['model.max_memory={"0": 20GiB}'], None),
        (["model.device=cuda:1"], None),
    ],
)
def test_a_context_opens_the_placed_model_and_settings_win(
    folder: Path, tmp_path: Path, gpus: None, changes: list[str], device_map: str | None
) -> None:
    recipe = _recipe("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", *changes)
    context = Context(recipe, RunFolder(tmp_path), Quiet(), load_prompts(recipe.data), verbs=("repair",))
    placed = context.checkpoint.config
    assert placed.device_map == device_map
    given = recipe.model if changes and changes != ["model.device_map=auto"] else None
    assert placed == given or (given is None and set(placed.max_memory) == {"0", "1"})
