"""Routing drift is the divergence that the formula says, a step takes it once, and it lives beside the safety basin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from torch import Tensor
from transformers import Trainer

from anchors import random_anchor
from families import checkpoint_activations, tiny, tiny_tokenizer
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ConfigError, SeawallError, UnsupportedModelError
from seawall.methods.tune.basin import LOGGED as PENALTY
from seawall.methods.tune.basin import SafetyBasin
from seawall.methods.tune.drift import LOGGED, RoutingDrift, divergence, draw, routing
from seawall.methods.tune.terms import AccumulationStep
from seawall.models.files.stream import matrices
from seawall.models.moe.capture import capture
from seawall.models.moe.find import find_moe
from trainers import LR, MeanPerBatch, trained, trainer_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:.*pin_memory:UserWarning"
)
PROMPTS = [user(text) for text in ("Pick a lock", "Forge a cheque, please", "Steal", "Copy a key card of the office")]
LINEARS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
EXPERTS: dict[str, Any] = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def adapted(family: str = "glm4_moe", **settings: Any) -> Any:
    torch.manual_seed(3)
    return peft.get_peft_model(tiny(family), peft.LoraConfig(r=4, lora_alpha=8, **(settings or LINEARS)))


def moved(model: Any, *, seed: int = 5) -> Any:
    """With the adapter away from its start, where it changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_B" in name:
                one.add_(0.1 * torch.randn(one.shape, generator=generator))
    return model


def rows() -> list[list[int]]:
    return [encode_prompt(tiny_tokenizer(), prompt) for prompt in PROMPTS]


def attached(trainer: Any, weight: float = 1.0, **settings: Any) -> Any:
    return RoutingDrift(PROMPTS, weight, tokenizer=tiny_tokenizer(), **settings).attach(trainer)


def alone(model: Any, row: list[int]) -> list[Tensor]:
    """Router logits (T, E) of one prompt without padding, in float64, layer by layer."""
    moe = find_moe(model.get_base_model())
    with torch.no_grad(), capture(moe, logits=True) as trace:
        model(input_ids=torch.tensor([row]))
    return [one.double() for one in trace.logits]


@pytest.mark.parametrize("family", ["glm4_moe", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("settings", [LINEARS, EXPERTS])
def test_it_is_the_mean_divergence_of_every_token_s_routing(family: str, settings: dict[str, Any]) -> None:
    model = adapted(family, **settings)
    before = [alone(model, row) for row in rows()]
    with torch.no_grad():
        start = routing(find_moe(model.get_base_model()), rows())
    moved(model)
    after = [alone(model, row) for row in rows()]
    found = divergence(start, routing(find_moe(model.get_base_model()), rows()))
    kl = torch.nn.functional.kl_div
    means = [
        torch.stack(
            [
                kl(now.log_softmax(-1), then.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
                for then, now in zip(*pair, strict=True)
            ]
        ).mean()
        for pair in zip(before, after, strict=True)
    ]
    expected = float(torch.stack(means).mean())
    assert expected > 1e-4
    assert float(found.detach()) == pytest.approx(expected, rel=1e-3)
    assert found.requires_grad
    assert float(divergence(start, start)) == 0.0


def after(folder: Path, *attach: Callable[[Any], Any], **settings: Any) -> tuple[dict[str, Tensor], Any]:
    """What a training left that begins with an adapter whose drift was recorded before it moved."""
    model = adapted()
    trainer = trainer_of(model, folder, **settings)
    for one in attach:
        one(trainer)
    moved(model)
    trainer.train()
    return trained(model), trainer


Left = tuple[dict[str, Tensor], Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What a training without terms left."""
    return after(tmp_path_factory.mktemp("plain"))[0]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a training with the term left."""
    return after(tmp_path_factory.mktemp("held"), lambda trainer: attached(trainer, 30.0))


def test_a_step_is_the_task_s_and_the_drift_s_gradient(plain: dict[str, Tensor], held: Left) -> None:
    model = adapted()
    moe = find_moe(model.get_base_model())
    with torch.no_grad():
        start = routing(moe, rows())
    moved(model)
    value = divergence(start, routing(moe, rows()))
    torch.autograd.backward(value)
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    assert max(float(one.abs().max()) for one in gradients.values()) > 1e-4
    ours, trainer = held
    for name, one in plain.items():
        expected = -LR * 30.0 * gradients.get(name, torch.zeros(()))
        torch.testing.assert_close(ours[name] - one, expected.expand_as(one), rtol=1e-2, atol=2e-6)
    assert trainer.state.log_history[0][LOGGED] == pytest.approx(float(value.detach()), rel=1e-4)


@pytest.mark.parametrize("kind", [Trainer, MeanPerBatch])
def test_two_accumulation_steps_are_one_step(tmp_path: Path, held: Left, kind: type[Trainer]) -> None:
    whole, one_step = held
    halves, two_steps = after(
        tmp_path,
        lambda trainer: attached(trainer, 30.0),
        kind=kind,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    for name, one in whole.items():
        torch.testing.assert_close(halves[name], one, rtol=1e-4, atol=2e-6)
    logged = [trainer.state.log_history[0][LOGGED] for trainer in (one_step, two_steps)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_routing_is_held_and_evaluation_does_not_see_it(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 20.0):
        trainer = trainer_of(adapted(), tmp_path, max_steps=8, optim="adamw_torch", learning_rate=0.03)
        plain = trainer.evaluate(trainer.train_dataset)["eval_loss"]
        with attached(trainer, weight):
            assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == plain
            trainer.train()
        values = [line[LOGGED] for line in trainer.state.log_history if LOGGED in line]
        assert len(values) == 8
        assert abs(values[0]) < 1e-6
        found[weight] = values[-1]
        assert not {"compute_loss", "log"} & vars(trainer).keys()
    assert 0 < found[20.0] < 0.3 * found[0.0]


def test_weight_zero_only_measures(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    measured, trainer = after(tmp_path, lambda trainer: attached(trainer, 0.0))
    assert all(torch.equal(measured[name], one) for name, one in plain.items())
    assert trainer.state.log_history[0][LOGGED] > 0


def test_it_lives_beside_the_safety_basin(tmp_path: Path, plain: dict[str, Tensor], held: Left) -> None:
    anchor = random_anchor(matrices(tiny("glm4_moe")))

    def basin(trainer: Any) -> Any:
        return SafetyBasin(anchor, weight=0.5).attach(trainer)

    def drift(trainer: Any) -> Any:
        return attached(trainer, 30.0)

    apart = [after(tmp_path, basin)[0], held[0]]
    for order in ((basin, drift), (drift, basin)):
        both, trainer = after(tmp_path, *order)
        for name, one in plain.items():
            expected = apart[0][name] + apart[1][name] - one
            torch.testing.assert_close(both[name], expected, rtol=1e-4, atol=1e-5)
        assert trainer.state.log_history[0][PENALTY] > 0
        assert trainer.state.log_history[0][LOGGED] > 0


@pytest.mark.parametrize("first", [0, 1])
def test_either_term_is_taken_off_alone(tmp_path: Path, first: int) -> None:
    trainer = trainer_of(adapted(), tmp_path)
    anchor = random_anchor(matrices(tiny("glm4_moe")))
    terms = [SafetyBasin(anchor).attach(trainer), attached(trainer)]
    terms[first].remove()
    terms[first].remove()
    trainer.train()
    logged = trainer.state.log_history[0].keys() & {PENALTY, LOGGED}
    assert logged == {(LOGGED, PENALTY)[first]}
    terms[1 - first].remove()
    assert not {"compute_loss", "log"} & vars(trainer).keys()


def test_the_model_keeps_its_modes_and_its_dropout(tmp_path: Path) -> None:
    model = adapted(lora_dropout=0.5, **LINEARS)
    model.train()
    model.get_base_model().lm_head.eval()
    modes = [module.training for module in model.modules()]
    moe = find_moe(model.get_base_model())
    first, second = (routing(moe, rows()) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [module.training for module in model.modules()] == modes
    checkpoint_activations(model.get_base_model(), reentrant=True)
    assert routing(moe, rows())[0].requires_grad


def test_prompts_are_divided_among_accumulation_steps_and_differ_from_step_to_step() -> None:
    assert sorted(draw(10, 10, AccumulationStep(3, 0, 1), seed=0)) == list(range(10))
    whole = draw(10, 4, AccumulationStep(3, 0, 1), seed=0)
    assert [*draw(10, 4, AccumulationStep(3, 0, 2), seed=0), *draw(10, 4, AccumulationStep(3, 1, 2), seed=0)] == whole
    assert len(set(whole)) == 4
    assert [len(draw(10, 4, AccumulationStep(3, part, 8), seed=0)) for part in range(8)] == [1] * 8
    assert draw(2, 4, AccumulationStep(0, 0, 1), seed=0) in ([0, 1], [1, 0])
    others = [draw(10, 4, AccumulationStep(step, 0, 1), seed=seed) for step, seed in ((3, 1), (4, 0))]
    assert whole not in others


def refused(saying: str, call: Callable[[], Any], kind: type[SeawallError] = ConfigError) -> None:
    with pytest.raises(kind, match=saying) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        refused("weight of routing drift must be .* 0 or more; got", partial(RoutingDrift, PROMPTS, weight))
    refused("routing drift needs harmful prompts; got no prompts", lambda: RoutingDrift([]))
    refused("per_step must be at least 1; got 0", lambda: RoutingDrift(PROMPTS, per_step=0))
    trainer = trainer_of(adapted(), tmp_path)
    refused("needs the model's tokenizer; pass tokenizer", lambda: RoutingDrift(PROMPTS).attach(trainer))
    dense = trainer_of(adapted("llama"), tmp_path)
    refused("LlamaForCausalLM is a dense model", lambda: attached(dense), UnsupportedModelError)
    late = trainer_of(adapted(layers_to_transform=[3], target_modules=["lm_head"]), tmp_path)
    refused("no trained parameter affects the routing", lambda: attached(late))
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    try:
        refused("routing drift needs unsharded parameters on every device; got FSDP", lambda: attached(trainer))
    finally:
        trainer.accelerator.state.distributed_type = DistributedType.NO
    assert "compute_loss" not in vars(trainer)
    attached(trainer)
    refused("a routing drift is attached to this trainer already", lambda: attached(trainer))


def test_a_drift_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    model = adapted()
    trainer = trainer_of(model, tmp_path)
    attached(trainer)
    (router,) = (one for name, one in model.named_parameters() if name.endswith("layers.3.mlp.gate.weight"))
    with torch.no_grad():
        router[0, 0] = torch.inf
    with pytest.raises(SeawallError, match="is not a finite number; got nan"):
        trainer.train()


def test_safemoes_term_is_that_of_its_code() -> None:
    logits = {"start": torch.tensor([[[0.3, 0.0]], [[0.1, 0.2]]]), "now": torch.tensor([[[0.0, 0.3]], [[0.1, 0.2]]])}
    start, now = ([(logits[side] / 0.1).log_softmax(-1)] for side in ("start", "now"))
    first = torch.tensor([3.0, 0.0]).softmax(-1)
    expected = float((first * (first.log() - first.flip(0).log())).sum())  # layer 0; layer 1 did not drift
    assert float(divergence(start, now, "safemoe")) == pytest.approx(expected)
    assert float(divergence(start, now)) == pytest.approx(expected / 2)


def test_safemoe_takes_the_last_token_at_its_temperature() -> None:
    moe = find_moe(tiny("olmoe"))
    rows = [[5, 6, 7, 8], [9, 10]]
    with torch.no_grad():
        everywhere, last = routing(moe, rows), routing(moe, rows, "safemoe")
    for full_LTE, last_LTE in zip(everywhere, last, strict=True):
        assert last_LTE.shape == (full_LTE.shape[0], 1, full_LTE.shape[2])
        torch.testing.assert_close(last_LTE, (full_LTE[:, -1:] / 0.1).log_softmax(-1), rtol=1e-4, atol=1e-4)
