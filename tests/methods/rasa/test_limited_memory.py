"""The memory of a repair: checkpointing changes no loss, back-off changes no update, and a failure is one line."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from small_repair import INPUTS, SELECTED, TOKENIZER, Row, config, run_repair, small_model, state
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from families import FAMILIES
from limited import limited_memory
from seawall.config.repair import RepairConfig, memory_settings
from seawall.errors import SeawallError
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.repair.trainables import trainables
from seawall.models.backoff import RowLimit, memory_remedy
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import hidden_input
from seawall.models.moe.find import MoEModel
from seawall.train.loop import Losses

BATCH = ([0, 3, 6], [1, 2])


def _backward(pieces: Iterable[Losses]) -> float:
    total = 0.0
    for loss, _ in pieces:
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def _gradients(moe: MoEModel, settings: RepairConfig, *, checkpointed: bool, step: str) -> tuple[float, list[Tensor]]:
    losses = RepairLosses(moe, TOKENIZER, INPUTS, settings)
    with trainables(moe, SELECTED, settings) as training:
        with gradient_checkpointing(moe.model, enabled=checkpointed):
            named = training.experts if step == "expert" else training.routers
            training.only(named)
            pieces = losses.expert_loss(BATCH) if step == "expert" else losses.router_loss(BATCH[0])
            loss = _backward(pieces)
            gradients = [parameter.grad for parameter in named.values() if parameter.grad is not None]
    assert gradients
    return loss, gradients


@pytest.mark.parametrize("step", ["expert", "router"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_loss_and_no_gradient(family: str, step: str) -> None:
    moe, settings = small_model(family), config(expert={"lr": 1e-2, "attention_lr": 1e-3})
    plain_loss, plain = _gradients(moe, settings, checkpointed=False, step=step)
    loss, gradients = _gradients(moe, settings, checkpointed=True, step=step)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in plain) > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"parameters": "full"},
        {"parameters": "shared"},
        {"parameters": "all_experts"},
        {"expert": {"lr": 1e-2, "routing": "replay"}, "micro_batch_size": 2},
        {"retain": {"per_batch": 2, "loss": "kl"}},
    ],
)
def test_checkpointing_changes_no_gradient_of_any_variant(settings: dict[str, Any]) -> None:
    moe = small_model()
    plain_loss, plain = _gradients(moe, config(**settings), checkpointed=False, step="expert")
    loss, gradients = _gradients(moe, config(**settings), checkpointed=True, step="expert")
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_under_checkpointing_the_replayed_routing_holds_in_the_backward_pass_too() -> None:
    """Routers that changed since the recording would route the second computation of a layer elsewhere."""
    results = []
    for checkpointed in (False, True):
        moe, settings = small_model(), config(expert={"lr": 1e-2, "routing": "replay"}, router={"enabled": False})
        losses = RepairLosses(moe, TOKENIZER, INPUTS, settings)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for layer in moe.layers:
                weight = next(layer.router.parameters())
                weight.add_(torch.randn(weight.shape, generator=generator))
        with trainables(moe, SELECTED, settings) as training:
            with gradient_checkpointing(moe.model, enabled=checkpointed):
                training.only(training.experts)
                _backward(losses.expert_loss(BATCH))
                results.append([value.grad for value in training.experts.values()])
    for gradient, expected in zip(*results, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parameters", ["selected", "full"])
def test_checkpointing_saves_activations(parameters: str) -> None:
    moe, settings = small_model(num_hidden_layers=12), config(parameters=parameters)
    selected = ((0, 3, 5), *[(1,)] * 10)
    assert len(selected) == moe.num_layers
    plain, checkpointed = (_all_saved(moe, settings, selected, value) for value in (False, True))
    assert checkpointed < 0.4 * plain


def _all_saved(moe: MoEModel, settings: RepairConfig, selected: Any, checkpointed: bool) -> int:
    """Bytes that autograd holds for the backward pass: saved tensors and, of checkpointed layers, their inputs."""
    losses = RepairLosses(moe, TOKENIZER, INPUTS, settings)
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def hold_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pack(hidden_input(args, kwargs))

    with trainables(moe, selected, settings) as training, ExitStack() as hooks:
        if checkpointed:
            for block in decoder_layers(moe.model):
                hooks.callback(block.register_forward_pre_hook(hold_input, with_kwargs=True).remove)
        hooks.enter_context(gradient_checkpointing(moe.model, enabled=checkpointed))
        training.only(training.experts)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            for _ in losses.expert_loss(BATCH):
                pass
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def _trained(tmp_path: Path, rows: int | None, **settings: Any) -> tuple[dict[str, Tensor], list[Row], list[int]]:
    moe, log = small_model(), list[Row]()
    chosen = config(rounds=1, batch_size=4, early_stop={"enabled": False}, **settings)
    with limited_memory(moe.model, rows or 1000, training=True) as sizes:
        run_repair(moe, tmp_path / f"{rows}-{settings.get('micro_batch_size')}", chosen, report=log.append)
    return state(moe), [row for row in log if row["phase"] != "validation"], sizes


def test_with_auto_the_rows_are_halved_until_they_fit_and_the_updates_stay(tmp_path: Path) -> None:
    plain, rows, sizes = _trained(tmp_path, None)
    assert max(sizes) == 5, "4 attacks and a retained exchange"
    fitted, fitted_rows, fitted_sizes = _trained(tmp_path, 2, micro_batch_size="auto")
    assert fitted_sizes[:2] == [5, 2]
    assert sum(size > 2 for size in fitted_sizes) == 1, "the size that fits is kept"
    assert [row["micro_batch_size"] for row in fitted_rows] == [2] * len(rows)
    assert [row["loss"] for row in fitted_rows] == pytest.approx([row["loss"] for row in rows], rel=1e-3)
    for name, tensor in plain.items():
        torch.testing.assert_close(fitted[name], tensor, rtol=1e-2, atol=1e-3)


def test_the_rows_are_halved_down_to_one_and_a_resumed_repair_starts_with_them() -> None:
    limit = RowLimit(None, automatic=True)
    assert [limit.of(5), limit.halve(), limit.of(5), limit.halve(), limit.of(5)] == [5, True, 2, True, 1]
    assert not limit.halve()
    resumed = RowLimit(None, automatic=True)
    resumed.resume({"loss": 1.0, **limit.logged})
    assert resumed.rows == 1
    fixed = RowLimit(4, automatic=False)
    assert [fixed.of(5), fixed.halve(), fixed.logged] == [4, False, {}]


@pytest.mark.parametrize("micro", [None, 2, "auto"])
def test_memory_too_small_is_one_line_that_names_the_settings_and_the_repair_resumes(
    tmp_path: Path, micro: int | str | None
) -> None:
    settings = config(rounds=1, batch_size=4, micro_batch_size=micro)
    with limited_memory((moe := small_model()).model, 0, training=True):
        with pytest.raises(SeawallError, match=r"gradient_checkpointing=true.*same command") as raised:
            with memory_remedy("the repair", memory_settings(settings)):
                run_repair(moe, tmp_path, settings)
    assert ("micro_batch_size=auto" in str(raised.value)) == (micro != "auto")
    assert "\n" not in str(raised.value)
    assert run_repair(small_model(), tmp_path, settings).progress.trained == 1


def test_fewer_selected_experts_help_where_these_train_alone() -> None:
    selected, shared = (memory_settings(config(parameters=name)) for name in ("selected", "shared"))
    assert "select.k" in selected
    assert "select.k" not in shared
    assert "in a new folder, repair.optimizer=adamw_8bit needs less memory too" in shared
    assert "new folder" not in memory_settings(config(parameters="full", optimizer="adamw_8bit"))


def test_recording_the_original_outputs_backs_off(tmp_path: Path) -> None:
    settings = config(expert={"lr": 1e-2, "routing": "replay"}, retain={"per_batch": 2, "loss": "kl"}, batch_size=8)
    moe = small_model()
    expected = [float(loss.detach()) for loss, _ in RepairLosses(moe, TOKENIZER, INPUTS, settings).expert_loss(BATCH)]
    with limited_memory(moe.model, 3) as sizes:
        losses = RepairLosses(moe, TOKENIZER, INPUTS, settings)
    assert max(sizes) > 3
    values = [float(loss.detach()) for loss, _ in losses.expert_loss(BATCH)]
    assert values == pytest.approx(expected, rel=1e-5)
