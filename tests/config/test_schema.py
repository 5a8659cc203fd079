"""What holds for every key of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from seawall.config import (
    AttackName,
    DataConfig,
    EarlyStop,
    EvalConfig,
    ExpertStep,
    ModelConfig,
    Recipe,
    RepairConfig,
    RouterStep,
    SelectConfig,
    dump_resolved,
)
from seawall.config.data import SourceConfig
from seawall.config.eval import EngineConfig, JudgeConfig
from seawall.config.problems import key_paths, variants
from seawall.data.attacks import ATTACKS
from seawall.data.sources import SOURCES
from seawall.evaluation.engines import ENGINES
from seawall.evaluation.judges import JUDGES


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        nested = [*variants(field.annotation).values()]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested.append(field.annotation)
        for section in nested:
            yield from sections(section)


@pytest.mark.parametrize("section", list(dict.fromkeys(sections(Recipe))))
def test_every_key_is_described_and_no_unknown_key_passes(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no description"
        assert field.description.endswith((".", "`")), f"{section.__name__}.{name}: not a sentence"
    assert section.model_config.get("extra") == "forbid"
    assert section.model_config.get("frozen") is True
    assert section.__doc__


def test_union_tags_are_the_keys_of_the_visible_dicts() -> None:
    assert set(variants(SourceConfig)) == set(SOURCES)
    assert set(variants(JudgeConfig)) == set(JUDGES)
    assert set(variants(EngineConfig)) == set(ENGINES)
    assert set(get_args(AttackName)) == set(ATTACKS)


def test_every_key_has_one_place_in_the_recipe() -> None:
    paths = list(key_paths(Recipe))
    assert "repair.expert.lr" in paths
    assert "data.harmful.kind" in paths
    assert "eval.judge.kind" in paths


def test_the_defaults_are_the_recommended_setting() -> None:
    recipe = Recipe()
    assert recipe.model.id == "lab"
    assert recipe.model.trust_remote_code is False
    assert (recipe.select.method, recipe.select.scope, recipe.select.k) == ("frequency", "global", 0.125)
    assert recipe.repair.expert == ExpertStep(enabled=True, lr=5e-5, epochs=1, max_steps=None, routing="frozen")
    assert recipe.repair.router == RouterStep(lr=1e-6, variant="pairwise", direction="forward")
    assert recipe.repair.early_stop == EarlyStop(attack_success_at_most=0.02, max_over_refusal_increase=0.05)
    assert recipe.export.max_logit_difference == 0.0


def test_resolved_spells_every_default_out() -> None:
    def leaves(values: dict[str, object], prefix: str = "") -> Iterator[str]:
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")

    of_variants = {
        path
        for path in key_paths(Recipe)
        if path.startswith("engine.")
        or (path.startswith(("data.", "eval.judge.", "eval.engine.")) and path.count(".") == 2)
    }
    assert set(leaves(dump_resolved(Recipe()))) >= set(key_paths(Recipe)) - of_variants


def test_the_recipes_seed_reaches_every_stage_that_names_none() -> None:
    recipe = Recipe.model_validate({"seed": 7, "repair": {"seed": 3}, "eval": None})
    assert (recipe.select.seed, recipe.repair.seed, recipe.eval.seed) == (7, 3, 7)
    built = Recipe(seed=5, select=SelectConfig(k=4), repair=RepairConfig(seed=9))
    assert (built.select.seed, built.select.k, built.repair.seed, built.eval.seed) == (5, 4, 9, 5)


@pytest.mark.parametrize("k", [1, 128, 0.125, 1.0])
def test_k_is_a_count_or_a_fraction(k: int | float) -> None:
    chosen = SelectConfig(k=k).k
    assert chosen == k
    assert type(chosen) is type(k)


@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, -0.1, True, "8", None, float("nan"), [1]])
def test_no_other_k(k: object) -> None:
    with pytest.raises(ValidationError, match="count of experts"):
        SelectConfig.model_validate({"k": k})


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11", "xpu:1"])
def test_devices(device: str) -> None:
    assert ModelConfig(device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "cpu:0 "])
def test_no_other_device(device: str) -> None:
    with pytest.raises(ValidationError, match="cuda:N"):
        ModelConfig(device=device)


@pytest.mark.parametrize(
    "values",
    [
        {"repair": {"rounds": "3"}},
        {"repair": {"rounds": True}},
        {"repair": {"rounds": 3.0}},
        {"repair": {"expert": {"lr": 0}}},
        {"repair": {"expert": {"lr": float("inf")}}},
        {"repair": {"weight_decay": -0.1}},
        {"eval": {"gold": 1}},
        {"eval": {"max_new_tokens": 0}},
        {"data": {"train_goals": 0}},
        {"data": {"attacks_seen": ["role_play", "role_play"]}},
        {"data": {"attacks_seen": []}},
        {"data": {"attacks_seen": "role_play"}},
        {"model": {"id": ""}},
        {"seed": -1},
        {"seed": 2**63},
        {"name": "../escape"},
        {"name": ".hidden"},
        {"output": ""},
    ],
)
def test_out_of_bounds_or_of_another_type(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(values)


def test_something_must_train() -> None:
    with pytest.raises(ValidationError, match=r"expert\.enabled or router\.enabled"):
        RepairConfig(expert=ExpertStep(enabled=False), router=RouterStep(enabled=False))


def test_no_attack_family_is_both_seen_and_unseen() -> None:
    with pytest.raises(ValidationError, match="not in both: persuasion"):
        DataConfig(attacks_seen=("persuasion",))
    assert DataConfig(attacks_seen=(), attack_file="attacks.jsonl").attacks_seen == ()


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EvalConfig().gold = False
