"""The section `tune` of a recipe: the paper's settings, and every key accounted for."""

from __future__ import annotations

from typing import get_args

from seawall.config import Recipe
from seawall.config.tune import ANCHORED, TuneConfig, TuneMethod
from seawall.methods.tune.methods import METHODS, PROJECTORS
from seawall.methods.tune.stages import TRAINING
from seawall.methods.tune.view import method_name

OWN = {"weight", "routing_drift", "drift_variant", "safelora"}
"""Of one method each: `Training.own_inputs`."""
BY_CONTENT = {"base", "anchor", "task", "contamination", "mixing_share", "seeds", "methods"}
"""What the adapter depends on through a hash of the anchor or the rows, or the stage's name."""
WITHOUT_EFFECT = {
    "save_steps",
    "logging_steps",
    "trackers",
    "evaluate",
    "attacks",
    "test_prompts",
    "keep_contaminated",
}
"""What no adapter depends on."""


def test_the_papers_numbers_are_the_defaults() -> None:
    found = Recipe().tune
    lora = found.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (8, 32.0, 0.05, ("q_proj", "v_proj"))
    assert (found.lr, found.epochs, found.batch_size, found.weight) == (5e-5, 10.0, 8, 1.0)
    assert found.safelora.threshold == 0.35


def test_every_method_is_built_named_and_known() -> None:
    assert set(METHODS) == set(get_args(TuneMethod))
    assert {*PROJECTORS, "safelora"} == set(ANCHORED)
    assert len({method_name(method) for method in METHODS}) == len(METHODS)


def test_every_setting_is_in_the_stage_s_fingerprint_or_has_no_effect_on_the_adapter() -> None:
    groups = [set(TRAINING), OWN, BY_CONTENT, WITHOUT_EFFECT]
    assert set().union(*groups) == set(TuneConfig.model_fields)
    assert sum(map(len, groups)) == len(TuneConfig.model_fields)
