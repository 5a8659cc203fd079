from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_repair import (
    BEFORE,
    INPUTS,
    PAIRS,
    REFUSAL,
    SELECTED,
    TOKENIZER,
    Row,
    changed,
    config,
    experts,
    run_repair,
    small_model,
    state,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from families import FAMILIES, NUM_EXPERTS
from seawall.config.repair import RepairConfig
from seawall.data.templating import encode_example
from seawall.data.types import Exchange
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.methods.rasa.repair import RepairResult, ValidationScores, repair
from seawall.methods.rasa.repair.original import TOP_TOKENS
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.repair.trainables import first_changed_layer
from seawall.models import greedy
from seawall.models.generate import generate
from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.find import MoEModel
from seawall.models.moe.routers import router_parameters
from seawall.models.moe.trainable_copies import write_slices
from seawall.train.loop import Losses, Trainer

OFF = {"enabled": False}


def _replies(moe: MoEModel) -> set[str]:
    prompts = [pair.attack for pair in PAIRS]
    return {reply.answer for reply in generate(moe.model, TOKENIZER, prompts, max_new_tokens=6, batch_size=8)}


def _stacks(moe: MoEModel) -> dict[str, int]:
    """Names of the stacked experts' tensors, with their layer."""
    return {layer.full_name(name): layer.index for layer in moe.layers for name in layer.weights}


def test_the_attacks_get_the_refusal_and_unselected_experts_keep_every_bit(tmp_path: Path) -> None:
    moe = small_model()
    before = state(moe)
    assert REFUSAL not in _replies(moe)
    run_repair(
        moe,
        tmp_path,
        config(rounds=1, batch_size=4, expert={"lr": 1e-2, "epochs": 20}, router=OFF, weight_decay=0.1),
    )
    assert _replies(moe) == {REFUSAL}
    assert changed(moe, before) == set(_stacks(moe))
    for name, layer in _stacks(moe).items():
        others = [expert for expert in range(NUM_EXPERTS) if expert not in SELECTED[layer]]
        assert torch.equal(state(moe)[name][others], before[name][others]), name


def test_the_router_step_pulls_routing_together_and_touches_only_routers(tmp_path: Path) -> None:
    moe, rows = small_model(), list[Row]()
    before = state(moe)
    settings = config(rounds=1, batch_size=8, expert=OFF, router={"lr": 1e-2, "epochs": 10})
    result = run_repair(moe, tmp_path, settings, report=rows.append)
    losses = [row["loss"] for row in rows if row["phase"] == "router"]
    assert len(losses) == 10
    assert losses[-1] < 0.5 * losses[0]
    assert changed(moe, before) == set(router_parameters(moe)) == set(result.slices)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_repaired(tmp_path: Path, family: str) -> None:
    moe = small_model(family)
    before = state(moe)
    result = run_repair(moe, tmp_path, config(rounds=1, batch_size=4))
    assert changed(moe, before) <= set(result.slices)
    stacks = _stacks(moe)
    assert {name for name in result.slices if name in stacks} == set(stacks)
    for name, indices in result.slices.items():
        assert indices == (SELECTED[stacks[name]] if name in stacks else None)
    refusal = [row["refusal_loss"] for row in result.progress.rows if row["phase"] == "expert"]
    assert len(refusal) == 2


@pytest.mark.parametrize(
    ("parameters", "trained"),
    [("all_experts", "experts"), ("full", "everything"), ("selected", "selected"), ("shared", "shared")],
)
def test_what_the_expert_step_trains_is_a_setting(tmp_path: Path, parameters: str, trained: str) -> None:
    moe = small_model()
    before, stacks = state(moe), _stacks(moe)
    result = run_repair(moe, tmp_path, config(rounds=1, parameters=parameters, router=OFF))
    names = changed(moe, before)
    if trained == "everything":
        assert names == set(result.slices) == {name for name, _ in moe.model.named_parameters()}
    elif trained == "shared":
        shared = {name for name, _ in moe.model.named_parameters() if ".shared_experts." in name}
        assert names == set(result.slices) == shared
    else:
        assert names == set(stacks) == set(result.slices)
    if trained == "experts":
        assert all(indices == tuple(range(NUM_EXPERTS)) for indices in result.slices.values())


@pytest.mark.parametrize("family", ["glm4_moe", "mixtral", "gpt_oss"])
def test_attention_beside_the_trained_experts_trains_at_its_own_rate(tmp_path: Path, family: str) -> None:
    moe = small_model(family)
    before, stacks, selected = state(moe), _stacks(moe), experts(((), *SELECTED[1:]))
    settings = config(rounds=1, expert={"lr": 1e-2, "attention_lr": 1e-3}, router=OFF)
    run_repair(moe, tmp_path, settings, selected=selected)
    trained = [f"layers.{layer.decoder_layer}.self_attn." for layer in moe.layers[1:]]
    others = changed(moe, before) - set(stacks)
    assert others
    assert all(any(part in name for part in trained) for name in others)
    assert all(any(part in name for name in others) for part in trained)
    # AdamW's first steps are of the size of the learning rate, so a tenth of it moves a tenth as far.
    moved = {name: float((state(moe)[name] - before[name]).abs().max()) for name in changed(moe, before)}
    farthest = [max(moved[name] for name in names) for names in (others, set(stacks) & moved.keys())]
    assert 0.03 < farthest[0] / farthest[1] < 0.3


def test_a_model_without_shared_experts_has_none_to_repair(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="the shared experts cannot be repaired"):
        run_repair(small_model("mixtral"), tmp_path, config(rounds=1, parameters="shared", router=OFF))


class _Nothing(torch.nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


def test_layers_without_a_shared_expert_stay_when_those_of_others_train(tmp_path: Path) -> None:
    moe = small_model()
    first, *others = [layer.decoder_layer for layer in moe.layers]
    moe.model.model.layers[first].mlp.shared_experts = _Nothing()
    before, settings = state(moe), config(rounds=1, parameters="shared", expert={"attention_lr": 1e-3}, router=OFF)
    assert first_changed_layer(moe, SELECTED, settings) == others[0]
    run_repair(moe, tmp_path, settings)
    assert {int(name.split(".")[2]) for name in changed(moe, before)} == set(others)


def test_full_training_of_a_16_bit_model_keeps_small_steps(tmp_path: Path) -> None:
    """Steps of 1e-5 vanish in bfloat16 one by one; many of them on float32 copies do not."""
    moe = small_model()
    moe.model.to(torch.bfloat16)
    before = state(moe)
    settings = config(
        rounds=2, parameters="full", expert={"lr": 1e-5, "epochs": 10}, router=OFF, early_stop=OFF, batch_size=4
    )
    run_repair(moe, tmp_path, settings)
    assert all(tensor.dtype == before[name].dtype for name, tensor in state(moe).items())
    assert len(changed(moe, before)) > 5


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order(tmp_path: Path) -> None:
    found: list[tuple[list[Row], dict[str, Tensor]]] = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        moe = small_model()
        result = run_repair(moe, tmp_path / name, config(seed=seed))
        found.append((result.progress.rows, state(moe)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())
    assert found[0][0] != found[2][0]


class _Script:
    """Validation scores read from a list: before the repair, then after each round."""

    def __init__(self, *attack_success_and_over_refusal: tuple[float, float]) -> None:
        self._scores = iter(attack_success_and_over_refusal)

    def __call__(self) -> ValidationScores:
        attack_success, over_refusal = next(self._scores)
        return replace(BEFORE, attack_success=attack_success, over_refusal=over_refusal)


def test_the_chosen_round_s_weights_are_in_the_model(tmp_path: Path) -> None:
    script = _Script((1.0, 0.1), (0.3, 0.1), (0.1, 0.1), (0.2, 0.1))
    moe, shorter = small_model(), small_model()
    assert run_repair(moe, tmp_path / "three", config(rounds=3), validate=script).chosen == 2
    run_repair(shorter, tmp_path / "two", config(rounds=2, early_stop=OFF))
    assert changed(moe, state(shorter)) == set()


def test_without_a_measure_all_rounds_run_and_the_last_is_kept(tmp_path: Path) -> None:
    settings = config(rounds=2, early_stop=OFF)
    moe, measured = small_model(), small_model()
    run_repair(measured, tmp_path / "measured", settings)
    # The second attempt goes on after the first round, which an attempt with a measure has trained and measured.
    with pytest.raises(StopIteration):
        run_repair(small_model(), tmp_path / "repair", settings, validate=_Script((1.0, 0.1), (0.3, 0.1)))
    result = _unmeasured(moe, tmp_path / "repair", settings)
    assert (result.chosen, result.progress.before, result.progress.scores) == (2, None, [])
    assert "None was measured" in result.reason
    assert changed(moe, state(measured)) == set()
    assert _unmeasured(small_model(), tmp_path / "repair", settings).chosen == 2, "a finished repair is only written"


def _unmeasured(moe: MoEModel, scratch: Path, settings: RepairConfig) -> RepairResult:
    inputs = (TOKENIZER, INPUTS, experts(), settings)
    return repair(moe, *inputs, validate=None, scratch=scratch, report=lambda row: None)


def test_it_stops_once_the_attacks_fail(tmp_path: Path) -> None:
    rows: list[Row] = []
    script = _Script((1.0, 0.1), (0.3, 0.1), (0.0, 0.1))
    result = run_repair(small_model(), tmp_path, config(rounds=9), validate=script, report=rows.append)
    assert result.chosen == 2
    assert [row["attack_success"] for row in rows if row["phase"] == "validation"] == [0.3, 0.0]
    assert result.progress.before is not None
    assert result.progress.before.attack_success == 1.0


def test_validation_sees_the_repaired_model(tmp_path: Path) -> None:
    moe, seen = small_model(), list[set[str]]()

    def validate() -> ValidationScores:
        seen.append(_replies(moe))
        return BEFORE

    settings = config(rounds=1, batch_size=4, expert={"lr": 1e-2, "epochs": 20}, router=OFF)
    run_repair(moe, tmp_path, settings, validate=validate)
    assert REFUSAL not in seen[0]
    assert seen[1] == {REFUSAL}


def test_a_round_is_an_expert_step_then_a_router_step(tmp_path: Path) -> None:
    rows: list[Row] = []
    run_repair(small_model(), tmp_path, config(), report=rows.append)
    phases = [(row["round"], row["phase"]) for row in rows]
    each = [[(number, "expert")] * 4 + [(number, "router")] * 4 + [(number, "validation")] for number in (1, 2)]
    assert phases == each[0] + each[1]
    assert [row["step"] for row in rows if row["phase"] == "expert"] == list(range(1, 9))


def test_a_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    moe = small_model()
    with torch.no_grad():
        moe.model.get_output_embeddings().weight[0, 0] = float("nan")
    before = state(moe)
    with pytest.raises(SeawallError, match="the training loss is not finite at step 1; got nan"):
        run_repair(moe, tmp_path, config())
    assert {name for name in changed(moe, before) if not before[name].isnan().any()} == set()


def test_experts_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got 1 MoE layers; expected 3"):
        run_repair(small_model(), tmp_path, config(), selected=experts(((0,),)))


def test_the_end_of_a_repair_holds_the_changed_slices_and_no_copy_of_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe, chosen, allocated = small_model(), ((0,), (1,), (2,)), list[int]()
    original, alive = state(moe), list[weakref.ref[Any]]()

    def traced(parameters: Mapping[str, nn.Parameter], *rest: Any, **settings: Any) -> Trainer[Any]:
        trainer: Trainer[Any] = Trainer(parameters, *rest, **settings)
        alive.extend([weakref.ref(trainer), *map(weakref.ref, parameters.values())])
        return trainer

    def written(parts: Any, values: Any) -> dict[str, Tensor]:
        assert [reference for reference in alive if reference() is not None] == []
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
            originals = write_slices(parts, values)
        allocated.extend(event.self_cpu_memory_usage for event in memory.events() or ())
        return originals

    monkeypatch.setattr("seawall.methods.rasa.repair.phases.Trainer", traced)
    monkeypatch.setattr("seawall.methods.rasa.repair.run.write_slices", written)
    result = run_repair(moe, tmp_path, config(rounds=1), selected=experts(chosen))
    assert alive
    slices = {
        name: original[name] if indices is None else original[name][list(indices)]
        for name, indices in result.slices.items()
    }
    assert set(result.before) == set(slices)
    assert all(torch.equal(result.before[name], tensor) for name, tensor in slices.items())
    held = sum(tensor.untyped_storage().nbytes() for tensor in result.before.values())
    assert held == sum(tensor.nbytes for tensor in slices.values())
    stack = min(tensor.nbytes for name, tensor in original.items() if name in _stacks(moe))
    assert max(tensor.nbytes for tensor in slices.values()) <= max(allocated) < stack


# Losses of single batches.


def _total(pieces: Iterable[Losses]) -> float:
    """The loss of a batch."""
    return sum(float(piece) for piece, _ in pieces)


def _part(pieces: Iterable[Losses], name: str) -> float:
    return sum(parts[name] for _, parts in pieces)


def _losses(moe: MoEModel, *, first_changed: int = 0, **settings: Any) -> RepairLosses:
    return RepairLosses(moe, TOKENIZER, INPUTS, config(**settings), first_changed=first_changed)


@pytest.mark.parametrize("retain", [{"per_batch": 2}, {"per_batch": 2, "loss": "kl"}])
def test_beginning_at_the_first_layer_that_changes_gives_the_same_loss(retain: dict[str, Any]) -> None:
    moe, batch = small_model(), ([0, 3, 5], [0, 2])
    values, ran = [], list[int]()
    block = decoder_layers(moe.model)[0]
    block.get_submodule("mlp").register_forward_pre_hook(lambda *_: ran.append(1))
    for first_changed in (0, 1):
        losses = _losses(moe, first_changed=first_changed, retain=retain)
        for parameter in moe.layers[1].experts.parameters():
            parameter.data.mul_(1.01)
        ran.clear()
        values.append(sum(loss.item() for loss, _ in losses.expert_loss(batch)))
        assert bool(ran) == (first_changed == 0)
        for parameter in moe.layers[1].experts.parameters():
            parameter.data.div_(1.01)
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"router": OFF}, 2),
        ({}, 2),
        ({"router": OFF, "parameters": "all_experts"}, 1),
        ({"parameters": "full"}, 0),
        ({"router": OFF, "expert": {"attention_lr": 1e-3}}, 2),
    ],
)
def test_the_first_layer_that_the_expert_step_changes(settings: dict[str, Any], expected: int) -> None:
    selected = ((), *SELECTED[1:])
    assert first_changed_layer(small_model(), selected, config(**settings)) == expected


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_start_above_trained_routers_changes_nothing(
    rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round, the input of the first layer with trained experts is that of the routers as they are."""
    settings = config(rounds=rounds, early_stop=OFF, expert={"lr": 1e-2, "epochs": 2}, router={"lr": 0.05})
    selected, results, ran = experts(((), (), SELECTED[2])), list[dict[str, Tensor]](), list[int]()
    for lowest in (True, False):
        moe, passes = small_model(), list[int]()
        if not lowest:
            monkeypatch.setattr("seawall.methods.rasa.repair.run.first_changed_layer", lambda *_: 0)
        first = decoder_layers(moe.model)[0]
        hook = first.get_submodule("mlp").register_forward_hook(lambda *_, passes=passes: passes.append(1))
        run_repair(moe, tmp_path / str(lowest), settings, selected=selected)
        hook.remove()
        results.append(state(moe))
        ran.append(len(passes))
    assert ran[0] < ran[1]
    for name, tensor in results[1].items():
        torch.testing.assert_close(results[0][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", ["frozen", "replay"])
def test_a_batch_is_the_mean_of_its_rows_whatever_their_padding(routing: str) -> None:
    losses = _losses(small_model(), expert={"routing": routing}, retain={"per_batch": 2, "weight": 0.5})
    with torch.no_grad():
        [(total, parts)] = losses.expert_loss(([0, 1, 5], [2, 0]))
        attacks = [_total(losses.expert_loss(([at], []))) for at in (0, 1, 5)]
        # A retained row needs an attack beside it; its own loss does not depend on which.
        retained = [_part(losses.expert_loss(([0], [at])), "retain_loss") for at in (2, 0)]
    assert parts["refusal_loss"] == pytest.approx(sum(attacks) / 3, rel=1e-5)
    assert parts["retain_loss"] == pytest.approx(sum(retained) / 2, rel=1e-5)
    assert float(total) == pytest.approx(parts["refusal_loss"] + 0.5 * parts["retain_loss"])


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_retained_answers_pull_only_where_the_model_has_changed(micro_batch: int | None) -> None:
    moe = small_model()
    losses = _losses(moe, retain={"per_batch": 2, "loss": "kl"}, micro_batch_size=micro_batch)
    plain = _losses(moe, retain={"per_batch": 2})
    batch = ([0, 1, 5], [2, 0, 1])
    with torch.no_grad():
        assert _part(losses.expert_loss(batch), "retain_loss") == pytest.approx(0, abs=1e-5)
        assert _part(plain.expert_loss(batch), "retain_loss") > 0.1
        both = [_part(made.expert_loss(batch), "refusal_loss") for made in (losses, plain)]
        assert both[0] == pytest.approx(both[1], rel=1e-5)
        _perturb_routers(moe)
        changed = _part(losses.expert_loss(batch), "retain_loss")
        alone = [_part(losses.expert_loss(([0], [at])), "retain_loss") for at in (0, 1, 2)]
    assert changed > 1e-3
    assert changed == pytest.approx(sum(alone) / 3, rel=1e-3)


def test_twins_diverge_by_kl_without_drawn_examples_too() -> None:
    losses = _losses(small_model(), retain={"per_batch": 0, "twins": 1, "loss": "kl"})
    with torch.no_grad():
        assert _part(losses.expert_loss(([0], [1])), "retain_loss") == pytest.approx(0, abs=1e-5)


def test_rows_that_padding_changes_run_alone_before_anything_was_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seawall.models.greedy._same_together", lambda model, tokens: False)
    losses = _losses(small_model(), retain={"per_batch": 2})
    with torch.no_grad():
        assert len([*losses.expert_loss(([0, 1, 5], [2, 0]))]) == 5


def test_the_teacher_of_a_wrapped_request_is_the_model_on_the_plain_one() -> None:
    """The loss is 0 where the wrapped prompt is the plain one, and the divergence from it elsewhere."""
    moe, opening = small_model(), {"opening_tokens": 0}
    plain = [pair.plain for pair in PAIRS]
    teachers = [*plain, *[None] * len(INPUTS.retain)]
    same = replace(INPUTS, refusals=[Exchange(prompt, REFUSAL) for prompt in plain], teachers=teachers)
    wrapped = replace(INPUTS, teachers=teachers)
    settings = config(objective="consistency", **opening)
    with torch.no_grad():
        zero, loss = (
            _part(RepairLosses(moe, TOKENIZER, inputs, settings).expert_loss(([0, 5], [])), "refusal_loss")
            for inputs in (same, wrapped)
        )
        rows = [
            [_logits(moe, Exchange(getattr(PAIRS[at], side), REFUSAL)) for side in ("plain", "attack")] for at in (0, 5)
        ]
    expected = [_divergence(p_TV, q_TV) for p_TV, q_TV in rows]
    assert zero == pytest.approx(0, abs=1e-5)
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-3)


def _divergence(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean KL(p || q), where all tokens but the likeliest under p are one outcome."""
    top_TK = p_TV.topk(TOP_TOKENS, dim=-1).indices
    p_TK, q_TK = (x_TV.exp().gather(-1, top_TK) for x_TV in (p_TV, q_TV))
    p_T, q_T = 1 - p_TK.sum(-1), 1 - q_TK.sum(-1)
    return float(((p_TK * (p_TK / q_TK).log()).sum(-1) + p_T * (p_T / q_T).log()).mean())


def _logits(moe: MoEModel, exchange: Exchange) -> Tensor:
    """Log-probabilities (T, V) at the response of one exchange."""
    row = encode_example(TOKENIZER, exchange)
    logits_TV: Tensor = moe.model(input_ids=torch.tensor([row.input_ids])).logits[0]
    return logits_TV[row.prompt_length - 1 : -1].log_softmax(-1)


def _gradients(moe: MoEModel, step: str, **settings: Any) -> list[Tensor]:
    """Of one batch, by the model's router parameters; either step's loss reaches them."""
    losses = _losses(moe, retain={"per_batch": 2, "weight": 0.5}, opening_weight=3.0, **settings)
    moe.model.zero_grad()
    pieces = losses.expert_loss(([0, 1, 5], [2, 0])) if step == "expert" else losses.router_loss([0, 1, 5, 7])
    for piece, _ in pieces:
        torch.autograd.backward(piece)
    return [parameter.grad.clone() for parameter in router_parameters(moe).values() if parameter.grad is not None]


@pytest.mark.parametrize("step", ["expert", "router"])
def test_a_batch_in_pieces_gives_the_gradient_of_the_whole_batch(step: str) -> None:
    moe = small_model()
    whole, pieces = _gradients(moe, step), _gradients(moe, step, micro_batch_size=2)
    assert len(whole) > 0
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-5
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-7)


def test_the_reference_router_loss_is_never_taken_in_pieces() -> None:
    losses = _losses(small_model(), router={"variant": "reference"}, micro_batch_size=1)
    with torch.no_grad():
        assert len(list(losses.router_loss([0, 1, 7]))) == 1


def _perturb_routers(moe: MoEModel) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for router in router_parameters(moe).values():
            router.add_(torch.randn(router.shape, generator=generator))


@pytest.mark.parametrize("family", ["glm4_moe", "mixtral", "gpt_oss"])
def test_under_replay_the_original_routing_is_used_whatever_the_routers_say(family: str) -> None:
    moe = small_model(family)
    losses = {routing: _losses(moe, expert={"routing": routing}) for routing in ("replay", "frozen")}
    batch = ([0, 3, 6], [1])
    with torch.no_grad():
        before = {routing: _total(loss.expert_loss(batch)) for routing, loss in losses.items()}
        _perturb_routers(moe)
        after = {routing: _total(loss.expert_loss(batch)) for routing, loss in losses.items()}
    assert before["replay"] == pytest.approx(before["frozen"], rel=1e-5)
    assert after["replay"] == pytest.approx(before["replay"], rel=1e-5)
    assert abs(after["frozen"] - before["frozen"]) > 1e-3


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_the_pairwise_router_loss_is_the_mean_over_pairs_whatever_their_padding(direction: str) -> None:
    losses = _losses(small_model(), router={"direction": direction})
    with torch.no_grad():
        together = _total(losses.router_loss([0, 1, 7]))
        apart = [_total(losses.router_loss([at])) for at in (0, 1, 7)]
    assert together == pytest.approx(sum(apart) / 3, rel=1e-4)


def test_the_reference_variant_is_another_number_for_more_than_one_pair() -> None:
    moe = small_model()
    with torch.no_grad():
        ours = _total(_losses(moe).router_loss([0, 1, 7]))
        theirs = _total(_losses(moe, router={"variant": "reference"}).router_loss([0, 1, 7]))
    assert ours > 0
    assert theirs > 0
    assert ours != pytest.approx(theirs)


def test_layers_that_return_more_than_hidden_states_are_run_from_the_start() -> None:
    moe, batch = small_model("glm_moe_dsa"), ([0, 3, 6], [1])
    with torch.no_grad():
        first, third = (_total(_losses(moe, first_changed=layer).expert_loss(batch)) for layer in (0, 2))
    assert third == pytest.approx(first, rel=1e-6)


def test_rows_that_padding_changes_are_trained_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moe = small_model()
    with torch.no_grad():
        expected = _total(_losses(moe, micro_batch_size=1).expert_loss(([0, 3, 6], [1])))
    monkeypatch.setitem(greedy._checked, moe.model, (64, False))
    losses = _losses(moe, micro_batch_size=4)
    with torch.no_grad():
        parts = list(losses.expert_loss(([0, 3, 6], [1])))
        assert len(parts) == 4
        assert float(sum(loss for loss, _ in parts)) == pytest.approx(expected, rel=1e-5)
