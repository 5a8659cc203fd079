"""`seawall plan` on the shipped recipes of large models, whose checkpoints are sparse files of their true length."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import sparse
from checkpoints import write_checkpoint
from places import REPOSITORY
from seawall.config.load import load_recipe
from seawall.data.attacks import further_turns
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.jobs.facts import plan_facts
from seawall.jobs.plan import Estimate, plan_recipe

RECIPES = REPOSITORY / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse")
    for build in (sparse.olmoe_1b_7b, sparse.qwen3_30b_a3b, sparse.qwen3_235b_a22b, sparse.qwen2_5_1_5b):
        sparse.write_sparse(path / build.__name__, build())
    return path


def _estimate(recipe: str, model: Path, *changes: str, **arguments: Any) -> Estimate:
    return plan_recipe(load_recipe(RECIPES / recipe, [f"model.id={model}", *changes]), **arguments)


def _largest(estimate: Estimate) -> dict[str, int]:
    return estimate.plan.terms(estimate.plan.largest[1])


def test_qwen3_30b_fits_a_gpu_of_141_gb(folder: Path) -> None:
    estimate = _estimate("qwen3-30b-a3b.yaml", folder / "qwen3_30b_a3b", memory="141GB")
    assert estimate.verdict.fits, estimate.verdict.text
    # 30.53e9 weights in bf16; 768 experts of 3 x 2048 x 768 and 48 routers of 128 x 2048 train.
    weights, trained = 2 * 30.532e9, 768 * 3 * 2048 * 768 + 48 * 128 * 2048
    assert _largest(estimate)["weights"] == pytest.approx(weights, rel=1e-3)
    assert _largest(estimate)["trainable copies"] == 4 * trained
    assert _largest(estimate)["optimizer state"] == 8 * trained
    assert estimate.plan.peak == pytest.approx(133e9, rel=0.05)


def test_qwen3_235b_fits_eight_gpus_of_141_gb(folder: Path) -> None:
    estimate = _estimate("qwen3-235b-a22b.yaml", folder / "qwen3_235b_a22b", memory="141GB", devices=8)
    assert estimate.verdict.fits, estimate.verdict.text
    assert estimate.plan.shapes.parameters == pytest.approx(235.09e9, rel=1e-3)
    # The fullest device has 12 of 94 layers.
    assert _largest(estimate)["weights"] == pytest.approx(2 * 235.09e9 * 12 / 94, rel=1e-3)
    assert _largest(estimate)["trainable copies"] == pytest.approx(4 * 1504 * 3 * 4096 * 1536 * 12 / 94, rel=1e-2)
    assert not _estimate("qwen3-235b-a22b.yaml", folder / "qwen3_235b_a22b", memory="141GB", devices=4).verdict.fits


def test_olmoe_fits_80_gb_and_evaluation_fits_24_gb(folder: Path) -> None:
    model = folder / "olmoe_1b_7b"
    estimate = _estimate("olmoe-1b-7b.yaml", model, memory="80GB")
    assert estimate.verdict.fits, estimate.verdict.text
    trained = 128 * 3 * 2048 * 1024 + 16 * 64 * 2048
    assert _largest(estimate)["weights"] == pytest.approx(2 * 6.919e9, rel=1e-3)
    assert _largest(estimate)["optimizer state"] == 8 * trained
    assert _estimate("olmoe-1b-7b.yaml", model, verb="eval", memory="24GB").verdict.fits


def test_olmoe_fits_24_gb_with_checkpointing_and_8_bit_moments(folder: Path) -> None:
    model = folder / "olmoe_1b_7b"
    estimate = _estimate("olmoe-1b-7b-24gb.yaml", model, memory="24GB")
    assert estimate.verdict.fits, estimate.verdict.text
    # Weights 13.84, copies and gradients 3.23 each, moments 1.64, context .63; activations and logits below 1.
    assert estimate.plan.peak == pytest.approx(23.3e9, rel=0.03)
    assert not _estimate("olmoe-1b-7b.yaml", model, memory="24GB").verdict.fits


def test_a_dense_recipe_and_its_own_verb(folder: Path) -> None:
    model = folder / "qwen2_5_1_5b"
    estimate = _estimate("qwen2.5-1.5b-gene.yaml", model, memory="24GB")
    assert estimate.plan.verb == "gene extract"
    assert estimate.verdict.fits
    assert estimate.plan.shapes.parameters == pytest.approx(1.544e9, rel=1e-2)
    for verb in ("run", "audit"):
        with pytest.raises(UnsupportedModelError, match=f"no plan of {verb}"):
            _estimate("qwen2.5-1.5b-gene.yaml", model, verb=verb)


def test_the_advice_fits_when_followed(folder: Path) -> None:
    model = folder / "qwen3_30b_a3b"
    refused = _estimate("qwen3-30b-a3b.yaml", model, "repair.micro_batch_size=null", memory="141GB")
    assert not refused.verdict.fits
    assert refused.verdict.settings
    assert _estimate("qwen3-30b-a3b.yaml", model, *refused.verdict.settings, memory="141GB").verdict.fits


def test_advice_keeps_to_what_a_setting_may_be(folder: Path) -> None:
    estimate = _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", verb="gene graft", memory="24GB")
    assert not estimate.verdict.fits


def test_wrong_arguments_are_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown verb"):
        _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", verb="dance")
    with pytest.raises(ConfigError, match="amount of memory"):
        _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", memory="much")


def test_time_follows_from_a_rate(folder: Path) -> None:
    slow, fast = (
        _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", memory="80GB", tflops=rate).plan.seconds
        for rate in (100.0, 200.0)
    )
    assert slow is not None
    assert fast is not None
    assert fast < slow < 2 * fast  # a decoding step has a shortest time


def test_engines_are_in_the_verdict(folder: Path) -> None:
    model = folder / "olmoe_1b_7b"
    served = _estimate("olmoe-1b-7b.yaml", model, "engine.kind=vllm", verb="eval", memory="80GB")
    # 92 % of the GPU are vLLM's unless the recipe says otherwise, so that the local weights have no room beside it.
    assert _largest(served)["vLLM server"] == int(0.92 * 80e9)
    assert not served.verdict.fits
    assert served.verdict.settings == ("engine.memory=0.8",)
    kind, (memory,) = "engine.kind=vllm", served.verdict.settings
    assert _estimate("olmoe-1b-7b.yaml", model, kind, memory, verb="eval", memory="80GB").verdict.fits
    large = ["engine.kind=continuous", "engine.cache_tokens=262144"]
    paged = _estimate("olmoe-1b-7b.yaml", model, *large, verb="eval", memory="24GB")
    # 16 layers of 16 heads of 128, keys and values, in 2 bytes, for 262,144 tokens and two pages of 256.
    assert _largest(paged)["paged cache"] == (262_144 + 512) * 16 * 4096 * 2
    assert not paged.verdict.fits
    (setting,) = paged.verdict.settings
    assert setting.startswith("engine.cache_tokens=")
    assert _estimate("olmoe-1b-7b.yaml", model, large[0], setting, verb="eval", memory="24GB").verdict.fits


def test_the_further_replies_of_a_live_attack_are_counted(folder: Path) -> None:
    fixed, live = (
        _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", "data.attacks_seen=[persuasion]",
                  f"data.attacks_unseen=[{family}]", verb="eval", memory="80GB")
        for family in ("role_play", "live_escalation")
    )  # fmt: skip
    goals, turns = 110, len(further_turns("live_escalation", "a goal"))
    more = live.plan.stages[0].work.generated - fixed.plan.stages[0].work.generated
    assert more == goals * turns * load_recipe(RECIPES / "olmoe-1b-7b.yaml").eval.max_new_tokens


def test_an_export_takes_the_time_of_its_files(folder: Path) -> None:
    estimate = _estimate("olmoe-1b-7b.yaml", folder / "olmoe_1b_7b", memory="80GB", tflops=100.0)
    export = next(stage for stage in estimate.plan.stages if stage.name == "export")
    # Written, hashed, compared and loaded once each, at 1 GB/s, by a process that starts; the delta beside it.
    weights = 4 * estimate.plan.shapes.weights
    assert weights < export.work.files < weights + 2e9
    assert estimate.plan.stage_seconds(export) == pytest.approx(export.work.files / 1e9 + 9)


def test_a_measured_plan_of_a_tiny_model_as_a_table(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", "olmoe")
    changes = [
        f"model.id={model}",
        "model.device=cpu",
        "repair.batch_size=2",
        "eval.batch_size=2",
        "data.train_goals=4",
        "repair.parameters=selected",  # the model has no shared experts
    ]
    estimate = plan_recipe(load_recipe(None, [*changes, "model.experts_implementation=null"]), measure=True)
    assert estimate.verdict.fits
    assert estimate.plan.seconds is not None
    assert estimate.plan.seconds > 0
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(plan_facts(estimate.plan, estimate.verdict))
    text = console.export_text()
    for stage in ("profile", "select", "eval-before", "repair", "eval-after", "export"):
        assert f"memory: {stage}" in text
    assert "fits this machine's memory" in text
    assert estimate.as_document()["verdict"] == estimate.verdict.text
