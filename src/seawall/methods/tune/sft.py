"""Supervised fine-tuning of a LoRA adapter by TRL, with terms attached to its loss."""

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
from seawall.methods.tune.rows import Lessons
from seawall.models.files.load import library_errors
from seawall.models.memory import is_out_of_memory
from seawall.models.silence_libraries import silence_libraries

ADAPTER, CHECKPOINTS, TRACKER = "adapter", "checkpoints", "tracker"
_TRACKED = "runs"
"""Where transformers puts TensorBoard's files, beside the checkpoints."""
_STATE = "trainer_state.json"
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EXTRA = ("peft", "trl", "datasets")

Attach = Callable[[Any], object]
"""Puts a term on a trainer, as `SafetyBasin.attach` does."""
Progress = Callable[[int, int], None]
"""Told the optimizer steps that are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left.

    Attributes:
        steps: optimizer steps.
        seconds: of the attempt that finished it.
        log: the trainer's lines: `step`, `loss`, and what attached terms add.
    """

    steps: int
    seconds: float
    log: tuple[Mapping[str, float], ...] = field(default=())


def require_extra() -> None:
    """Refuse to begin without the libraries of the extra `tune`.

    Raises:
        SeawallError: one is not installed.
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
    lessons: Lessons,
    config: TuneConfig,
    *,
    folder: Path,
    seed: int,
    attach: Sequence[Attach] = (),
    progress: Progress | None = None,
) -> Trained:
    """Trains an adapter into `folder/adapter`; goes on from the last whole checkpoint in `folder/checkpoints`.

    Args:
        model: as it is loaded; it carries the adapter afterwards.
        tokenizer: its own.
        lessons: what is learned.
        config: the adapter's and the training's settings.
        folder: where the adapter and the checkpoints go; these are removed at the end, and a tracker's files kept.
        seed: of the adapter's first values, the order of the rows, and dropout.
        attach: terms of the loss.
        progress: told after every step.

    Raises:
        UnsupportedModelError: the model has no such layers, TRL cannot train them, or a tracker is not installed.
        ConfigError: no chosen layer has a parameter that is to be adapted.
        SeawallError: memory is too small; a loss or the adapter is not finite. Checkpoints stay.
    """
    begun = time.monotonic()
    with _libraries():
        adapted = _adapted(model, config.lora, seed)
        trainer = _trainer(adapted, tokenizer, lessons, config, folder=folder / CHECKPOINTS, seed=seed)
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.add_callback(_Told(progress))
        for one in attach:
            one(trainer)
        first = trainer.is_world_process_zero()
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS, remove=first))
        _require_finite(adapted)
        if first:
            adapted.save_pretrained(folder / ADAPTER)
            if (folder / CHECKPOINTS / _TRACKED).is_dir():
                shutil.copytree(folder / CHECKPOINTS / _TRACKED, folder / TRACKER, dirs_exist_ok=True)
            shutil.rmtree(folder / CHECKPOINTS)
    log = tuple(line for line in trainer.state.log_history if "loss" in line)
    return Trained(trainer.state.global_step, round(time.monotonic() - begun, 1), log)


@contextmanager
def _libraries() -> Iterator[None]:
    """Their notices stay silent, and what they raise for too small a memory is one line."""
    try:
        with silence_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SeawallError(
            "memory is too small for this training",
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
    """The stacked parameters to adapt; by their whole names where layers are chosen, which PEFT does for modules alone.

    Raises:
        ConfigError: no such layer has one.
    """
    if lora.layers is None or not lora.target_parameters:
        return list(lora.target_parameters)
    found = []
    for name, _ in model.named_parameters():
        layer = _LAYER.search(name)
        ends = any(name.endswith(f".{target}") for target in lora.target_parameters)
        if layer is not None and int(layer[1]) in lora.layers and ends:
            found.append(name)
    if not found:
        raise ConfigError(
            "no layer of tune.lora.layers has a parameter of tune.lora.target_parameters",
            got=f"layers {', '.join(map(str, lora.layers))} and {', '.join(lora.target_parameters)}",
            remedy="choose other layers, or leave them out",
        )
    return found


def _trainer(
    adapted: Any,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Lessons,
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
            train_dataset=datasets.Dataset.from_list(list(lessons.rows)),
            processing_class=tokenizer,
        )


def _require_finite(adapted: Any) -> None:
    """The last step is followed by no loss that would tell."""
    broken = [name for name, one in adapted.named_parameters() if one.requires_grad and not bool(one.isfinite().all())]
    if broken:
        raise SeawallError(
            "the trained adapter holds numbers that are not finite",
            got=f"{len(broken)} such tensors, {broken[0]} first",
            remedy="finished methods stay; lower tune.lr",
        )


def _last_checkpoint(folder: Path, *, remove: bool) -> str | None:
    """The last one that is whole; those whose writing was cut off, which lack their state, one process removes."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        step = path.name.rpartition("-")[2]
        if step.isdecimal() and _is_whole(path):
            whole[int(step)] = path
        elif remove:
            shutil.rmtree(path)
    return str(whole[max(whole)]) if whole else None


def _is_whole(path: Path) -> bool:
    """The trainer writes its state after everything else."""
    try:
        return isinstance(json.loads((path / _STATE).read_bytes()), dict)
    except (OSError, ValueError):
        return False


class _Told(TrainerCallback):  # type: ignore[misc]
    """Tells the progress; and logs before every checkpoint, so that a training that goes on from there has lost no part
    of a mean."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After every optimizer step; the trainer logs before it saves."""
        control.should_log |= control.should_save
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps)
