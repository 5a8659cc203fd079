"""Training by TRL: it goes on from its last whole checkpoint as if it had not stopped, and ends at a loss of NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from families import tiny, tiny_tokenizer
from seawall.config.tune import TuneConfig
from seawall.data.types import Exchange, user
from seawall.errors import Interrupted, SeawallError, UnsupportedModelError
from seawall.methods.tune.rows import EncodedRows, encode_rows
from seawall.methods.tune.sft import ADAPTER, CHECKPOINTS, TrainingResult, _last_checkpoint, train
from seawall.methods.tune.terms import Attachment, LossTerm

pytest.importorskip("peft")
pytest.importorskip("trl")


def encoded_rows() -> EncodedRows:
    rows = [Exchange(user(f"say {at}"), f"{at} it is") for at in range(16)]
    return encode_rows(tiny_tokenizer(), rows, max_length=128)


def config_of(**settings: Any) -> TuneConfig:
    defaults = {"lr": 1e-2, "epochs": 3.0, "batch_size": 4, "save_steps": 2, "logging_steps": 1}
    return TuneConfig.model_validate({**defaults, **settings})


def trained(folder: Path, model: Any = None, *, stop: int | None = None, **settings: Any) -> TrainingResult:
    def told(done: int, total: int) -> None:
        assert total == 12
        (folder / CHECKPOINTS / "runs").mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINTS / "runs" / "events").write_text("of a tracker")
        if done == stop:
            raise Interrupted

    used = tiny("llama") if model is None else model
    config = config_of(**settings)
    return train(used, tiny_tokenizer(), encoded_rows(), config, folder=folder, seed=3, progress=told)


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


def test_an_interrupted_training_ends_as_the_same_to_the_last_bit(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", stop=7)
    left = tmp_path / "parts" / CHECKPOINTS
    assert [path.name for path in left.glob("checkpoint-*")] == ["checkpoint-6"]
    torn = left / "checkpoint-8"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    parts = trained(tmp_path / "parts")
    assert (parts.steps, [line["step"] for line in parts.log]) == (12, list(range(1, 13)))
    assert [line["loss"] for line in parts.log] == [line["loss"] for line in whole.log]
    ours, theirs = adapter(tmp_path / "whole"), adapter(tmp_path / "parts")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not left.exists()


def test_the_curve_of_a_training_that_went_on_has_lost_nothing(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", logging_steps=5)
    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", stop=9, logging_steps=5)
    parts = trained(tmp_path / "parts", logging_steps=5)
    assert [(line["step"], line["loss"]) for line in parts.log] == [(line["step"], line["loss"]) for line in whole.log]
    assert {5, 10} <= {line["step"] for line in whole.log}


def test_an_adapter_that_the_last_step_broke_is_not_kept(tmp_path: Path) -> None:
    def attach(trainer: Any) -> None:
        B = next(one for name, one in trainer.model.named_parameters() if "lora_B" in name)
        # The root of 0 is a number, its gradient is none.
        Attachment(trainer, LossTerm("root", "root", "the root", 1.0, lambda step: B.square().sum().sqrt()))

    config = config_of(epochs=1.0, batch_size=16)
    with pytest.raises(SeawallError, match=r"the trained adapter is not finite; got 12 tensors"):
        train(tiny("llama"), tiny_tokenizer(), encoded_rows(), config, folder=tmp_path, seed=3, attach=[attach])
    assert not (tmp_path / ADAPTER).exists()


def test_one_process_alone_removes_a_torn_checkpoint(tmp_path: Path) -> None:
    torn = tmp_path / "checkpoint-8"
    torn.mkdir()
    assert _last_checkpoint(tmp_path, remove=False) is None
    assert torn.is_dir()
    assert _last_checkpoint(tmp_path, remove=True) is None
    assert not torn.exists()


def test_a_loss_of_nan_ends_it_and_leaves_the_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, stop=5)
    broken = tiny("llama")
    broken.lm_head.weight.data[5] = float("nan")
    with pytest.raises(
        SeawallError, match=r"the loss is not a finite number; got nan after 4 steps; .* lower tune\.lr"
    ):
        trained(tmp_path, broken)
    assert [path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / ADAPTER).exists()


def test_an_adapter_of_what_the_model_lacks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"the adapter does not fit the model; got .*nothing_proj"):
        trained(tmp_path, lora={"target_modules": ["nothing_proj"]})


def test_the_output_layer_cannot_be_adapted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"trainer cannot be made .*; got .*lm_head"):
        trained(tmp_path, lora={"target_modules": ["lm_head"]})


@pytest.mark.parametrize("tracker", ["nonsense", "tensorboard"])
def test_a_tracker_that_is_not_there_is_one_line(tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(SeawallError, match=rf"(?i)trainer cannot be made .*tune\.trackers.*; got .*{tracker}"):
        trained(tmp_path, trackers=[tracker])


def test_layers_and_experts_are_what_is_adapted(tmp_path: Path) -> None:
    lora = {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "dropout": 0.0, "layers": [1]}
    trained(tmp_path, tiny("mixtral"), epochs=3.0, lora=lora)
    assert {name.partition(".layers.")[2].partition(".")[0] for name in adapter(tmp_path)} == {"1"}
    assert sum("experts" in name for name in adapter(tmp_path)) == 2
    assert (tmp_path / "tracker/events").read_text() == "of a tracker"
