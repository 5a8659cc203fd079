"""The optimizers of a repair: refused in one line where they cannot work, and resumed to the same bits."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from seawall.config.repair import OptimizerName
from seawall.distributed import one_process
from seawall.errors import ConfigError
from seawall.train import optimizers
from seawall.train.loop import Losses, Settings, Trainer
from seawall.train.optimizers import CLASSES, require_optimizer


def test_every_name_is_pytorchs_or_bitsandbytes() -> None:
    assert {"adamw", *CLASSES} == set(get_args(OptimizerName))


@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_library_is_one_line(name: OptimizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{name} .*no bitsandbytes.*seawall\[memory\]"):
        require_optimizer(name)
    require_optimizer("adamw", "cpu")


def test_a_device_without_paged_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="adamw_offload does not work on this device; got cpu; expected cuda"):
        require_optimizer("adamw_offload", "cpu")
    require_optimizer("adamw_8bit", "cpu")


class _Library(torch.optim.SGD):
    """The calls of bitsandbytes' optimizers that a checkpoint needs, with momentum in place of AdamW."""

    def init_state(self, group: dict[str, Any], parameter: nn.Parameter, group_index: int, index: int) -> None:
        assert self.param_groups[group_index]["params"][index] is parameter
        state: dict[str, Any] = self.state[parameter]
        state |= {"step": 0, "state1": torch.zeros_like(parameter), "qmap1": torch.ones(2)}

    def step(self, closure: Any = None) -> Any:
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if not self.state[parameter]:
                    self.init_state(group, parameter, group_index, index)
                state = self.state[parameter]
                state["step"] += 1
                state["state1"].mul_(0.9).add_(parameter.grad)
                parameter.data.sub_(group["lr"] * state["state1"] / state["step"])


class _Problem:
    def __init__(self, name: OptimizerName) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"a": (4, 40, 64), "b": (3,)}
        self.parameters = {key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()}
        settings = Settings(lr=0.01, optimizer=name)
        self.trainer = Trainer[float](self.parameters, settings, one_process(), factors={"b": 0.5})

    def fit(self, batches: list[float]) -> None:
        self.trainer.fit(batches, self._loss, lambda row: None)

    def _loss(self, batch: float) -> list[Losses]:
        loss = sum(((parameter - batch) ** 2).mean() for parameter in self.parameters.values())
        assert isinstance(loss, Tensor)
        return [(loss, {})]

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters.values()]


def _resumed_equals_uninterrupted(name: OptimizerName) -> dict[str, Tensor]:
    whole = _Problem(name)
    whole.fit([1.0, 2.0, 3.0, 4.0])
    interrupted = _Problem(name)
    interrupted.fit([1.0, 2.0])
    saved = {key: tensor.clone() for key, tensor in interrupted.trainer.state().items()}
    resumed = _Problem(name)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters.values(), interrupted.values(), strict=True):
            parameter.copy_(value)
    resumed.trainer.load_state(saved)
    resumed.fit([3.0, 4.0])
    assert resumed.trainer.steps == 4
    assert all(torch.equal(left, right) for left, right in zip(whole.values(), resumed.values(), strict=True))
    return saved


def test_pytorchs_state_resumes_to_the_same_bits() -> None:
    saved = _resumed_equals_uninterrupted("adamw")
    assert set(saved) == {"steps", *(f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in "ab")}


def test_a_librarys_state_resumes_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Module:
        AdamW8bit = _Library

    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: _Module)
    saved = _resumed_equals_uninterrupted("adamw_8bit")
    assert set(saved) == {"steps", *(f"{key}/{name}" for key in ("step", "state1") for name in "ab")}


def test_bitsandbytes_moments_are_8_bit_and_resume_to_the_same_bits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes")
        saved = _resumed_equals_uninterrupted("adamw_8bit")
    assert saved["state1/a"].dtype == torch.uint8
    assert saved["state1/b"].dtype == torch.float32, "a small tensor keeps its precision"
    reference, problem = _Problem("adamw"), _Problem("adamw_8bit")
    for each in (reference, problem):
        each.fit([1.0, 2.0, 3.0])
    for expected, value in zip(reference.values(), problem.values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=5e-3)
