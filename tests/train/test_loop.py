from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_scheduler

from seawall.distributed import one_process
from seawall.errors import ConfigError, SeawallError
from seawall.train.loop import Losses, Row, Schedule, Settings, Trainer, random_state, set_random_state

BATCHES = [float(number) for number in range(1, 9)]


class _Problem:
    """Two named parameters, one of which some batches do not touch, and a loss that wants dropout."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.parameters = {"a.weight": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.full((2, 2), 0.5))}
        self.trainer = Trainer[float](self.parameters, settings or Settings(lr=0.1, weight_decay=0.01), one_process())
        self.rows: list[Row] = []

    def losses(self, batch: float) -> list[Losses]:
        return [self.loss(batch)]

    def loss(self, batch: float) -> Losses:
        dropped = torch.nn.functional.dropout(self.parameters["a.weight"], 0.5)
        total = (dropped * batch).square().sum()
        if batch > 2:
            total = total + self.parameters["b"].sum() * batch
        return total, {"first": float(dropped.detach()[0])}

    def fit(self, batches: Sequence[float]) -> None:
        self.trainer.fit(batches, self.losses, self.rows.append)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters.values()]


def test_training_is_plain_adamw_with_clipping() -> None:
    torch.manual_seed(0)
    ours = _Problem(Settings(lr=0.1, weight_decay=0.01, max_grad_norm=0.7))
    ours.fit(BATCHES)
    torch.manual_seed(0)
    plain = _Problem()
    optimizer = torch.optim.AdamW(plain.parameters.values(), lr=0.1, weight_decay=0.01)
    for batch in BATCHES:
        torch.autograd.backward(plain.loss(batch)[0])
        torch.nn.utils.clip_grad_norm_(plain.parameters.values(), 0.7)
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(left, right) for left, right in zip(ours.values(), plain.values(), strict=True))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(schedule: Schedule, warmup: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    ours = Settings(lr=0.3, schedule=schedule, warmup_steps=warmup, total_steps=10)
    for step in range(10):
        assert ours.lr_at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_updates_follow_the_schedule() -> None:
    problem = _Problem(Settings(lr=0.1, schedule="linear", total_steps=len(BATCHES)))
    problem.fit(BATCHES)
    assert [row["lr"] for row in problem.rows] == [
        pytest.approx(0.1 * (1 - step / len(BATCHES))) for step in range(len(BATCHES))
    ]


def test_a_falling_schedule_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="linear schedule needs total_steps"):
        Settings(lr=0.1, schedule="linear").lr_at(0)


def test_every_update_is_logged() -> None:
    problem = _Problem()
    problem.fit(BATCHES[:2])
    assert [row["step"] for row in problem.rows] == [1, 2]
    assert set(problem.rows[0]) == {"step", "lr", "loss", "gradient_norm", "first"}


def test_a_loss_in_pieces_is_their_sum() -> None:
    whole, pieces = _Problem(), _Problem()
    torch.manual_seed(0)
    whole.trainer.fit([3.0], lambda batch: [whole.loss(batch)], whole.rows.append)

    def twice(batch: float) -> Iterator[Losses]:
        for share in (0.25, 0.75):
            torch.manual_seed(0)
            total, parts = pieces.loss(batch)
            yield total * share, {name: value * share for name, value in parts.items()}

    pieces.trainer.fit([3.0], twice, pieces.rows.append)
    assert pieces.rows[0] == pytest.approx(whole.rows[0])
    for one, other in zip(whole.values(), pieces.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("stopped_after", [1, 2, 5])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, stopped_after: int) -> None:
    torch.manual_seed(1)
    whole = _Problem()
    whole.fit(BATCHES)

    torch.manual_seed(1)
    killed = _Problem()
    killed.fit(BATCHES[:stopped_after])
    saved = {**killed.trainer.state(), **random_state()}
    save_file({name: tensor.contiguous() for name, tensor in saved.items()}, tmp_path / "state.safetensors")
    values = killed.values()

    torch.manual_seed(99)
    resumed = _Problem()
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters.values(), values, strict=True):
            parameter.copy_(value)
    tensors = load_file(tmp_path / "state.safetensors")
    set_random_state(tensors)
    resumed.trainer.load_state({name: tensor for name, tensor in tensors.items() if name not in random_state()})
    assert resumed.trainer.steps == stopped_after
    resumed.fit(BATCHES[stopped_after:])
    assert resumed.rows == whole.rows[stopped_after:]
    assert all(torch.equal(left, right) for left, right in zip(resumed.values(), whole.values(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_is_lost(bad: float) -> None:
    problem = _Problem()
    problem.fit(BATCHES[:2])
    before, state = problem.values(), problem.trainer.state()
    with pytest.raises(SeawallError, match=r"training loss is not finite at step 3; got (nan|inf); lower the learning"):
        problem.fit([bad])
    assert all(torch.equal(left, right) for left, right in zip(problem.values(), before, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in problem.trainer.state().items())


def test_a_gradient_that_is_not_finite_stops_before_anything_is_lost() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    trainer = Trainer[int]({"a": parameter}, Settings(lr=0.1), one_process())
    # The square root of zero is finite, its slope is not.
    with pytest.raises(SeawallError, match="norm of the gradient is not finite at step 1"):
        trainer.fit([0], lambda _: [(parameter.sqrt().sum(), {})], lambda _: None)
    assert parameter.item() == 0.0
    assert parameter.grad is None


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="got 2 processes; expected one"):
        one_process()


def test_settings_of_accelerate_in_the_environment_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = one_process()
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.mixed_precision == "no"
