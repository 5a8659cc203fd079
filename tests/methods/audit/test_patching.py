"""The parts of a repair: their conditions, what each puts into the model, and the claim."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from families import tiny
from seawall.artifacts.audit import AuditChange, AuditFigure
from seawall.artifacts.evaluation import Sample
from seawall.config import Recipe
from seawall.data.types import user
from seawall.methods.audit import patching
from seawall.methods.audit.conditions import ConditionRunner
from seawall.methods.audit.context import AuditSubject
from seawall.methods.audit.patches import Part, patch_plan, set_up
from seawall.methods.audit.patching import PartEffect, claim, label, patching_result
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.inspect import summarize_moe
from seawall.models.files.tensor_roles import tensor_roles
from seawall.models.moe.find import find_moe
from seawall.models.moe.module_copies import shared_experts
from seawall.models.moe.parameter_groups import parameter_groups
from seawall.models.slices import full_slices

ROUTING = Part("routing", "repaired_routing", "original_routing")


def test_every_parameter_belongs_to_the_group_of_its_module() -> None:
    moe = find_moe(tiny("glm4_moe"))
    groups = parameter_groups(moe, moe.model.state_dict())
    assert list(groups) == ["experts", "shared_experts", "routers", "attention", "other"]
    assert sum(map(len, groups.values())) == len(moe.model.state_dict())
    assert set(groups["experts"]) == {layer.full_name(weight) for layer in moe.layers for weight in layer.weights}
    assert all(".shared_experts." in name for name in groups["shared_experts"])
    assert all(".mlp.gate." in name for name in groups["routers"])
    assert all(".self_attn." in name for name in groups["attention"])
    assert "model.layers.0.mlp.down_proj.weight" in groups["other"]
    assert set(parameter_groups(moe, groups["attention"])) == {"attention"}


@pytest.mark.parametrize(
    ("family", "path"), [("granitemoeshared", "shared_mlp"), ("inkling_text", "mlp.shared_experts")]
)
def test_shared_experts_beside_the_block_or_stacked_are_shared_experts(family: str, path: str) -> None:
    moe = find_moe(tiny(family))
    groups = parameter_groups(moe, moe.model.state_dict())
    assert set(shared_experts(moe)) == {f"model.layers.{layer.decoder_layer}.{path}" for layer in moe.layers}
    assert set(groups["shared_experts"]) == {name for name in moe.model.state_dict() if ".shared_" in name}
    shared = moe.model.get_submodule(f"model.layers.{moe.layers[0].decoder_layer}.{path}")
    assert summarize_moe(moe).shared_parameters == sum(value.numel() for value in shared.parameters())


def test_a_bias_of_the_block_that_chooses_experts_is_the_routers() -> None:
    moe = find_moe(tiny("afmoe"))
    groups = parameter_groups(moe, moe.model.state_dict())
    biases = {f"model.layers.{layer.decoder_layer}.mlp.expert_bias" for layer in moe.layers}
    assert biases == {name for name in moe.model.state_dict() if name.endswith("expert_bias")}
    assert biases < set(groups["routers"])
    assert [tensor_roles(moe, biases)[name].kind for name in biases] == ["router"] * moe.num_layers


def test_experts_that_are_parts_of_the_decoder_layer_have_its_mlp_beside_them_and_not_its_attention() -> None:
    moe = find_moe(tiny("gemma4_text"))
    groups = parameter_groups(moe, moe.model.state_dict())
    assert set(shared_experts(moe)) == {f"model.layers.{index}.mlp" for index in range(moe.num_layers)}
    assert all(".mlp." in name for name in groups["shared_experts"])
    assert all(".router." in name for name in groups["routers"])
    assert {name for name in moe.model.state_dict() if ".self_attn." in name} == set(groups["attention"])


def test_two_groups_need_two_conditions_and_one_group_none() -> None:
    both = patch_plan(("experts", "routers"))
    assert both.conditions == ("original", "repaired", "only_experts", "only_routers", ROUTING.alone, ROUTING.without)
    assert both.parts == (
        Part("experts", "only_experts", "only_routers"),
        Part("routers", "only_routers", "only_experts"),
        ROUTING,
    )
    one = patch_plan(("attention",))
    assert one.conditions == ("original", "repaired", ROUTING.alone, ROUTING.without)
    assert one.parts == (ROUTING,)


def test_projections_around_the_routed_experts_are_no_shared_experts() -> None:
    moe = find_moe(tiny("nemotron_h", moe_latent_size=16))
    names = [name for name, _ in moe.model.named_parameters() if "latent_proj" in name]
    assert names
    assert all(path.endswith(".shared_experts") for path in shared_experts(moe))
    assert set(names) <= set(parameter_groups(moe, moe.model.state_dict())["other"])
    gated = shared_experts(find_moe(tiny("qwen2_moe")))
    assert {path.rpartition(".")[2] for path in gated} == {"shared_expert", "shared_expert_gate"}


def test_routed_and_shared_experts_are_also_patched_together() -> None:
    plan = patch_plan(("experts", "shared_experts", "routers", "attention"))
    assert plan.patches["only_moe_blocks"] == {"experts", "shared_experts"}
    assert plan.patches["without_moe_blocks"] == {"routers", "attention"}
    assert len(set(plan.patches.values())) == len(plan.patches) == 12
    assert len(patch_plan(("experts", "shared_experts")).patches) == 4
    assert label("only_moe_blocks") == "original with the repaired routed and shared experts"
    assert label("without_attention") == "repaired, original attention"


def test_a_condition_holds_the_repaired_values_of_its_groups_alone() -> None:
    moe = find_moe(tiny("glm4_moe"))
    before, state = model_fingerprint(moe.model), moe.model.state_dict()
    names = {
        "experts": moe.layers[0].full_name(moe.layers[0].weights[0]),
        "routers": f"{moe.layers[1].router_name}.weight",
        "attention": "model.layers.1.self_attn.o_proj.weight",
    }
    changed = {name: state[name] + torch.ones(()) for name in names.values()}
    repaired = full_slices(changed)
    plan = patch_plan(tuple(parameter_groups(moe, repaired)))
    for condition, groups in plan.patches.items():
        with set_up(condition, moe, repaired, groups):
            patched = {group for group, name in names.items() if torch.equal(state[name], changed[name])}
        assert patched == groups
        assert model_fingerprint(moe.model) == before
    for condition, expected in ((ROUTING.alone, False), (ROUTING.without, True)):
        with set_up(condition, moe, repaired, frozenset()):
            assert [torch.equal(state[name], changed[name]) for name in repaired] == [expected] * 3
        assert model_fingerprint(moe.model) == before


def _moved(middle: float, p: float = 0.001, half: float = 0.02) -> AuditChange:
    return AuditChange("a", "b", "attack_refusal", middle, middle - half, middle + half, p)


GAIN, STILL = _moved(0.6), _moved(0.0, 1.0)
WHOLE = PartEffect(_moved(0.6), _moved(-0.6), _moved(0.6), (AuditFigure(1, 0.9, 1.1), AuditFigure(1, 0.9, 1.1)))
NOTHING = PartEffect(STILL, STILL, _moved(-0.6))


def test_the_part_that_carries_the_gain_is_named() -> None:
    text = claim(GAIN, ("experts", "routers"), {"experts": WHOLE, "routers": NOTHING})
    assert "alone in the original model: routed experts 100 [90, 110] %; routers unknown (0 [−2, +2] points)." in text
    assert "The gain rests on routed experts: brought by this part alone" in text
    assert "rests on routed experts and on routing" in claim(GAIN, ("experts",), {"experts": WHOLE, "routing": WHOLE})
    assert "It changed attention alone." in claim(GAIN, ("attention",), {"routing": NOTHING})


@pytest.mark.parametrize("gain", [STILL, _moved(-0.5), _moved(0.3, 0.2), _moved(0.3, half=0.9)])
def test_without_a_gain_no_part_is_named(gain: AuditChange) -> None:
    assert "no gain to divide" in claim(gain, ("experts",), {"experts": WHOLE})


@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (PartEffect(_moved(0.6), _moved(-0.6), STILL), "No part carries the gain clearly more than the rest"),
        (PartEffect(_moved(0.6), STILL, _moved(0.6)), "A clear share comes with routed experts alone. No part's"),
        (PartEffect(STILL, _moved(-0.6), _moved(0.6)), "No part alone brings a clear share. A clear share is lost wi"),
        (PartEffect(_moved(0.6, p=0.12), _moved(-0.6), _moved(0.6)), "No part alone brings a clear share."),
    ],
)
def test_a_part_carries_only_what_it_brings_loses_and_beats_the_rest_with(effect: PartEffect, sentence: str) -> None:
    text = claim(GAIN, ("experts", "routers"), {"experts": effect, "routers": NOTHING})
    assert sentence in text
    assert "The gain rests on" not in text


def test_every_part_has_a_name() -> None:
    assert set(patching.PARTS) == {
        "experts",
        "shared_experts",
        "moe_blocks",
        "routers",
        "attention",
        "other",
        "routing",
    }


def _replies(refused: int, total: int = 20) -> list[Sample]:
    """One attack per goal, of which the first ones are refused."""
    labels: list[Any] = ["refused"] * refused + ["complied"] * (total - refused)
    return [
        Sample(str(goal), str(goal), "attack:story", user(f"Tell {goal}"), "", verdict, "")
        for goal, verdict in enumerate(labels)
    ]


def test_shares_are_those_of_the_gained_refusals() -> None:
    context: Any = SimpleNamespace(recipe=Recipe(), opened=SimpleNamespace(fingerprint="sha256:a"))
    profile: Any = None
    runner = ConditionRunner(AuditSubject(context, profile), (), Path())
    refusals = {"original": 0, "repaired": 20, "only_experts": 15, "only_routers": 1}
    refusals |= {ROUTING.alone: 0, ROUTING.without: 20}
    samples = {name: _replies(refused) for name, refused in refusals.items()}
    result = patching_result(runner, patch_plan(("experts", "routers")), samples)
    shares = {name: figure.value for name, figure in result.figures.items()}
    assert shares == pytest.approx(
        {
            "alone:experts": 0.75,
            "lost:experts": 0.95,
            "alone:routers": 0.05,
            "lost:routers": 0.25,
            "alone:routing": 0.0,
            "lost:routing": 0.0,
        }
    )
    for figure in result.figures.values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    assert result.condition("only_experts").rates["attack_refusal"].rate == 0.75
    assert "The gain rests on routed experts: brought by this part alone" in result.claim
