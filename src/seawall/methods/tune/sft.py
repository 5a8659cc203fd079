"""Supervised fine-tuning of a LoRA adapter with TRL, with terms attached to its loss."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed

from seawall.config.tune import TuneConfig, TuneLora
from seawall.errors import ConfigError, SeawallError
from seawall.methods.tune.rows import EncodedRows
from seawall.models.files.load import library_errors
from seawall.models.memory import is_out_of_memory
from seawall.models.silence_libraries import silence_libraries

ADAPTER, CHECKPOINTS, TRACKER = "adapter", "checkpoints", "tracker"
_TRACKED = "runs"
"""The folder among the checkpoints into which transformers writes TensorBoard's files."""
_STATE = "trainer_state.json"
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EXTRA = ("peft", "trl", "datasets")

Attach = Callable[[Any], object]
"""Attaches a term to a trainer, as `SafetyBasin.attach` does."""
Progress = Callable[[int, int], None]
"""(optimizer steps completed, total) -> None."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Steps, time and log of a training.

    Attributes:
        steps: optimizer steps.
        seconds: duration of the attempt that completed the training.
        log: the trainer's log lines: `step`, `loss`, and the keys of attached terms.
    """

    steps: int
    seconds: float
    log: tuple[Mapping[str, float], ...] = field(default=())


def require_extra() -> None:
    """Refuse to start without the libraries of the extra `tune`.

    Raises:
        SeawallError: a library is not installed.
    """
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise SeawallError(
            "fine-tuning needs libraries that are not installed",
            got=f"no {', '.join(missing)}",
            remedy="pip install 'seawall[tune]'",
        )


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: EncodedRows,
    config: TuneConfig,
    *,
    folder: Path,
    seed: int,
    attach: Sequence[Attach] = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains an adapter into `folder/adapter`; resumes from the last complete checkpoint in `folder/checkpoints`.

    Args:
        model: a newly loaded model; it has the adapter attached afterwards.
        tokenizer: of the model.
        rows: tokenised training rows.
        config: settings of adapter and training.
        folder: for the adapter, and for checkpoints, which are removed at the end; a tracker's files are kept.
        seed: of the adapter's initial values, the order of the rows, and dropout.
        attach: functions that attach terms to the loss.
        progress: called after each step.

    Raises:
        UnsupportedModelError: the model has no such layers, TRL cannot train them, or a tracker is not installed.
        ConfigError: none of the chosen layers has a parameter to adapt.
        SeawallError: out of memory; a loss or the adapter is not finite. Checkpoints stay.
    """
    begun = time.monotonic()
    with _libraries():
        adapted = _adapted(model, config.lora, seed)
        trainer = _trainer(adapted, tokenizer, rows, config, folder=folder / CHECKPOINTS, seed=seed)
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.add_callback(_ProgressCallback(progress))
        for add_term in attach:
            add_term(trainer)
        first = trainer.is_world_process_zero()
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS, remove=first))
        _require_finite(adapted)
        if first:
            adapted.save_pretrained(folder / ADAPTER)
            if (folder / CHECKPOINTS / _TRACKED).is_dir():
                shutil.copytree(folder / CHECKPOINTS / _TRACKED, folder / TRACKER, dirs_exist_ok=True)
            shutil.rmtree(folder / CHECKPOINTS)
    log = tuple(line for line in trainer.state.log_history if "loss" in line)
    return TrainingResult(trainer.state.global_step, round(time.monotonic() - begun, 1), log)


@contextmanager
def _libraries() -> Iterator[None]:
    """Silences the libraries, and turns their out-of-memory errors into one line."""
    try:
        with silence_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SeawallError(
            "the training ran out of memory",
            remedy="lower tune.batch_size (and raise tune.accumulation), or set tune.gradient_checkpointing=true; "
            "checkpoints and finished methods stay",
        ) from error


def _adapted(model: PreTrainedModel, lora: TuneLora, seed: int) -> Any:
    peft: Any = importlib.import_module("peft")
    set_seed(seed)
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        target_parameters=_parameters(model, lora) or None,
        layers_to_transform=None if lora.layers is None else list(lora.layers),
        task_type="CAUSAL_LM",
    )
    with library_errors("the adapter does not fit the model"):
        return peft.get_peft_model(model, config)


def _parameters(model: PreTrainedModel, lora: TuneLora) -> list[str]:
    """The stacked parameters to adapt; by full name where `lora.layers` is set, which PEFT applies to modules alone.

    Raises:
        ConfigError: none of these layers has such a parameter.
    """
    if lora.layers is None or not lora.target_parameters:
        return list(lora.target_parameters)
    parameters = []
    for name, _ in model.named_parameters():
        layer = _LAYER.search(name)
        ends = any(name.endswith(f".{target}") for target in lora.target_parameters)
        if layer is not None and int(layer[1]) in lora.layers and ends:
            parameters.append(name)
    if not parameters:
        raise ConfigError(
            "no layer of tune.lora.layers has a parameter of tune.lora.target_parameters",
            got=f"layers {', '.join(map(str, lora.layers))} and {', '.join(lora.target_parameters)}",
            remedy="choose other layers, or leave them out",
        )
    return parameters


def _trainer(
    adapted: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: EncodedRows,
    config: TuneConfig,
    *,
    folder: Path,
    seed: int,
) -> Any:
    trl: Any = importlib.import_module("trl")
    datasets: Any = importlib.import_module("datasets")
    kind: Any = importlib.import_module("seawall.methods.tune.trainer").CheckedTrainer
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        seed=seed,
        learning_rate=config.lr,
        lr_scheduler_type=config.lr_scheduler_type,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,
        bf16=False,
        fp16=False,
        use_cpu=adapted.device.type == "cpu",
        router_aux_loss_coef=0.0,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=1,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        report_to=list(config.trackers) or "none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=adapted.device.type == "cuda",
    )
    with library_errors("TRL's trainer cannot be made for these settings (tune.lora, tune.trackers)"):
        return kind(
            model=adapted,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(list(rows.rows)),
            processing_class=tokenizer,
        )


def _require_finite(adapted: Any) -> None:
    """No loss is computed after the last step, so the weights are checked here."""
    broken = [
        name
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad and not bool(parameter.isfinite().all())
    ]
    if broken:
        raise SeawallError(
            "the trained adapter is not finite",
            got=f"{len(broken)} tensors with NaN or infinity, {broken[0]} first",
            remedy="finished methods stay; lower tune.lr",
        )


def _last_checkpoint(folder: Path, *, remove: bool) -> str | None:
    """The last complete checkpoint; incomplete ones, which lack the trainer's state, are removed if asked."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        step = path.name.rpartition("-")[2]
        if step.isdecimal() and _is_complete(path):
            complete[int(step)] = path
        elif remove:
            shutil.rmtree(path)
    return str(complete[max(complete)]) if complete else None


def _is_complete(path: Path) -> bool:
    """Whether the trainer's state, which is written last, can be read."""
    try:
        return isinstance(json.loads((path / _STATE).read_bytes()), dict)
    except (OSError, ValueError):
        return False


class _ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and logs before every checkpoint, so that a resumed training loses no part of a logged mean."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each optimizer step; the trainer logs before it saves."""
        control.should_log |= control.should_save
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps)
