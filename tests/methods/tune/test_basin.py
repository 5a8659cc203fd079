"""A trainer with the penalty takes the steps that the formula says, however its batches are cut."""

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

from anchors import anchor_of, dense, matrix_of, random_anchor
from checkpoint_pairs import write, write_pair
from families import tiny
from seawall.artifacts.anchor import Anchor
from seawall.errors import ConfigError, SeawallError
from seawall.methods.tune.basin import LOGGED, SafetyBasin, from_checkpoint
from seawall.models.files.stream import matrices
from trainers import LR, MeanPerBatch, trained, trainer_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:.*pin_memory:UserWarning"
)


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    return random_anchor(matrices(tiny("llama")))


def adapted(**settings: Any) -> Any:
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, target_modules=["q_proj", "v_proj"], **settings
    )
    return peft.get_peft_model(tiny("llama"), config)


def after(folder: Path, attach: Callable[[Trainer], Any], **settings: Any) -> tuple[dict[str, Tensor], Trainer]:
    model = adapted()
    trainer = trainer_of(model, folder, **settings)
    attach(trainer)
    trainer.train()
    return trained(model), trainer


class TakesNoCount(Trainer):  # type: ignore[misc]
    """A trainer of a model whose loss cannot be told the number of tokens of all accumulation steps."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model_accepts_loss_kwargs = False


@pytest.mark.parametrize("kind", [Trainer, MeanPerBatch])
def test_a_step_is_the_task_s_and_the_penalty_s_gradient(tmp_path: Path, anchor: Anchor, kind: type[Trainer]) -> None:
    basin = SafetyBasin(anchor, weight=0.5)
    model = adapted()
    before = trained(model)
    value = basin.penalty(model)()
    torch.autograd.backward(value)
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    plain, _ = after(tmp_path, lambda trainer: None, kind=kind)
    ours, trainer = after(tmp_path, basin.attach, kind=kind)
    for name in before:
        moved = ours[name] - plain[name]
        torch.testing.assert_close(moved, -LR * 0.5 * gradients[name], rtol=1e-3, atol=1e-6)
    assert trainer.state.log_history[0][LOGGED] == pytest.approx(float(value.detach()), rel=1e-5)
    dense_value = torch.zeros((), dtype=torch.float64)
    for name, one in adapted().named_modules():
        if hasattr(one, "get_delta_weight"):
            key = f"{name.removeprefix('base_model.model.')}.weight"
            dense_value += dense(anchor.matrices[key], one.get_delta_weight("default").detach() / 2)
    assert float(value.detach()) == pytest.approx(float(dense_value), rel=1e-4)


@pytest.mark.parametrize("kind", [Trainer, MeanPerBatch, TakesNoCount])
def test_two_accumulation_steps_are_one_step(tmp_path: Path, anchor: Anchor, kind: type[Trainer]) -> None:
    basin = SafetyBasin(anchor, weight=3.0)
    whole, _ = after(tmp_path, basin.attach, kind=kind)
    halves, _ = after(tmp_path, basin.attach, kind=kind, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    weaker, _ = after(tmp_path, SafetyBasin(anchor, weight=1.5).attach, kind=kind)
    for name, one in whole.items():
        torch.testing.assert_close(halves[name], one, rtol=1e-5, atol=1e-6)
    assert max(float((weaker[name] - one).abs().max()) for name, one in whole.items()) > 1e-4


def test_a_line_of_the_logs_is_a_mean_over_steps_of_unequal_parts(tmp_path: Path, anchor: Anchor) -> None:
    basin = SafetyBasin(anchor, weight=3.0)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 2}
    _, each = after(tmp_path, basin.attach, **settings)
    _, both = after(tmp_path, basin.attach, **settings, logging_steps=2)
    first, second = (line[LOGGED] for line in each.state.log_history if LOGGED in line)
    (mean,) = (line[LOGGED] for line in both.state.log_history if LOGGED in line)
    assert abs(first - second) > 1e-3 * first
    assert mean == pytest.approx((first + second) / 2, rel=1e-5)


def test_training_drives_the_penalty_down_and_evaluation_does_not_see_it(tmp_path: Path, anchor: Anchor) -> None:
    model = adapted()
    trainer = trainer_of(model, tmp_path, max_steps=12, optim="adamw_torch", learning_rate=0.05)
    basin = SafetyBasin(anchor, weight=10.0)
    plain = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    with basin.attach(trainer):
        assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == plain
        trainer.train()
    values = [line[LOGGED] for line in trainer.state.log_history if LOGGED in line]
    assert len(values) == 12
    assert values[-1] < 0.1 * values[0]
    assert not {"compute_loss", "log"} & vars(trainer).keys()


def test_weight_zero_only_measures(tmp_path: Path, anchor: Anchor) -> None:
    plain, _ = after(tmp_path, lambda trainer: None)
    measured, trainer = after(tmp_path, SafetyBasin(anchor, weight=0.0).attach)
    assert all(torch.equal(measured[name], one) for name, one in plain.items())
    assert trainer.state.log_history[0][LOGGED] > 0


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_whole_matrices_train_against_a_copy_or_the_checkpoint_s_files(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    folder = write(tmp_path / "start", model)
    basin = SafetyBasin(random_anchor(matrices(model)), weight=1.0)
    copied = basin.penalty(model)
    filed = basin.penalty(model, start=from_checkpoint(folder))
    assert [float(penalty().detach()) for penalty in (copied, filed)] == [0.0, 0.0]
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.01 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
    gradients = []
    for penalty in (copied, filed):
        value = penalty()
        assert float(value.detach()) > 0.1
        model.zero_grad()
        torch.autograd.backward(value)
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_trainer_of_full_matrices(tmp_path: Path) -> None:
    models = [tiny("llama"), tiny("llama")]
    start = write(tmp_path / "start", models[0])
    basin = SafetyBasin(random_anchor(matrices(models[0])), weight=25.0)
    trainers = [trainer_of(model, tmp_path, max_steps=8) for model in models]
    basin.attach(trainers[0], start=start)
    for trainer in trainers:
        trainer.train()
    moved = [basin.penalty(model, start=from_checkpoint(start))() for model in models]
    assert 0 < float(moved[0].detach()) < 0.5 * float(moved[1].detach())


def refused(saying: str, call: Callable[[], Any], error: type[SeawallError] = ConfigError) -> None:
    with pytest.raises(error, match=saying) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_refused(tmp_path: Path, anchor: Anchor) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        refused("weight of the safety penalty must be .* 0 or more; got", partial(SafetyBasin, anchor, weight))
    unknown: Any = "subspaces"
    refused("unknown projector; got subspaces; exp.* subspace, ref", lambda: SafetyBasin(anchor, projector=unknown))
    trainer = trainer_of(adapted(), tmp_path)
    some = anchor_of({name: one for name, one in anchor.matrices.items() if "q_proj" in name})
    refused("that the anchor lacks; got 3 of 6, .*v_proj.weight first", lambda: SafetyBasin(some).attach(trainer))
    full = anchor_of({name: matrix_of(torch.eye(one.rows, 32)) for name, one in anchor.matrices.items()})
    refused("span the output of every trained matrix.*; got ", lambda: SafetyBasin(full).attach(trainer))


def test_an_anchor_that_spans_everything_can_be_measured_by(tmp_path: Path, anchor: Anchor) -> None:
    full = anchor_of({name: matrix_of(torch.eye(one.rows, 32)) for name, one in anchor.matrices.items()})
    trainer = trainer_of(adapted(), tmp_path)
    with SafetyBasin(full, 0.0).attach(trainer):
        trainer.train()
    seen = [line[LOGGED] for line in trainer.state.log_history if LOGGED in line]
    assert seen
    assert max(seen) < 1e-8
    assert "compute_loss" not in vars(trainer)
    SafetyBasin(full, projector="reference").attach(trainer).remove()
    attachment = SafetyBasin(anchor).attach(trainer)
    refused("attached to this trainer already", lambda: SafetyBasin(anchor).attach(trainer))
    attachment.remove()
    SafetyBasin(anchor).attach(trainer)


def test_a_model_that_the_trainer_makes_anew_is_refused(tmp_path: Path, anchor: Anchor) -> None:
    trainer = trainer_of(None, tmp_path, model_init=lambda trial: adapted())
    SafetyBasin(anchor).attach(trainer)
    refused("replaced its model after the safety basin was attached; give the trainer a model", trainer.train)


def test_sharded_parameters_are_refused(tmp_path: Path, anchor: Anchor) -> None:
    trainer = trainer_of(adapted(), tmp_path)
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    try:
        refused("unsharded parameters on every device; got FSDP", lambda: SafetyBasin(anchor).attach(trainer))
    finally:
        trainer.accelerator.state.distributed_type = DistributedType.NO


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, anchor: Anchor) -> None:
    class Broken(Trainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * float("nan")

    trainer = trainer_of(adapted(), tmp_path, kind=Broken)
    SafetyBasin(anchor).attach(trainer)
    refused("the task's loss is not a finite number; got nan; .*checkpoints", trainer.train, SeawallError)
    model = adapted()
    trainer = trainer_of(model, tmp_path)
    SafetyBasin(anchor).attach(trainer)
    factor = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_A["default"].weight
    with torch.no_grad():
        factor[0, 0] = 1e30
    refused(r"is not a finite number; got (nan|inf)", trainer.train, SeawallError)


def test_a_basin_is_made_from_two_checkpoints_kept_and_read_again(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path / "pair")
    basin = SafetyBasin.between(str(aligned), str(base), targets=["q_proj"], rank=2)
    basin.save(tmp_path / "anchor")
    again = SafetyBasin(tmp_path / "anchor", weight=0.5)
    assert again.anchor.matrices.keys() == basin.anchor.matrices.keys()
    assert all(name.endswith("q_proj.weight") for name in basin.anchor.matrices)
    assert (basin.weight, again.weight) == (1.0, 0.5)
