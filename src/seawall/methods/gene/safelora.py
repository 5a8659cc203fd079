"""Safe LoRA (arXiv 2405.16833) as a baseline of grafting: project the task's adapter onto the alignment directions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from seawall.artifacts.anchor import NAME as ANCHOR
from seawall.artifacts.anchor import Anchor
from seawall.artifacts.graft import ADAPTER, Graft
from seawall.config.gene import GeneGraft
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.methods.gene.task_model import base_of, check_merged, require_ungrafted, task_adapter
from seawall.methods.tune.safelora import SafeLoraReport, project
from seawall.models.files.checkpoint import save_model
from seawall.models.files.open import Checkpoint
from seawall.models.files.rewrite import checkpoint_fingerprint
from seawall.models.files.stream import outline
from seawall.models.lora.merge import attach_saved_adapter, merge_attached
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import file_hash, storage_errors
from seawall.runs.progress import Reporter
from seawall.runs.publish import published


def write_projected(task: ModelConfig, output: Path, config: GeneGraft, *, reporter: Reporter) -> None:
    """Writes base and projected adapter as one checkpoint; the output folder is published atomically.

    Args:
        task: the adapter's folder, and how to load its base.
        output: a new or empty folder.
        config: the anchor, and the settings of the projection.
        reporter: receives progress.

    Raises:
        SeawallError: no adapter, no anchor, or an anchor of another model. Nothing is written then.
    """
    begun = time.monotonic()
    folder = _adapter(task)
    assert config.anchor is not None
    anchor_folder = Path(config.anchor).expanduser()
    anchor = Anchor.load(anchor_folder)
    base = base_of(folder, task)
    require_ungrafted(base)
    anchor.require_model(base.fingerprint)
    with storage_errors(output), published(output) as scratch:
        reporter.stage(f"Projecting the task's adapter, and merging it into {base.id}")
        report = _merge(base, folder, anchor, config, scratch)
        graft = Graft(
            task_model=base.fingerprint,
            task_id=task.id,
            gene=None,
            gene_made=None,
            form="merged",
            coefficients={},
            tuned="fixed",
            shots=0,
            result=checkpoint_fingerprint(outline(scratch)),
            method="safelora",
            anchor=file_hash(anchor_folder / f"{ANCHOR}.json"),
            note=f"{report}; nothing to revert: the task's adapter was not changed",
        )
        if config.verify:
            reporter.stage("Reload and compare")
            check = check_merged(base, scratch / ADAPTER, scratch, allowed=config.max_logit_difference)
            graft = replace(graft, check=check)
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)


def _adapter(task: ModelConfig) -> Path:
    folder = task_adapter(task)
    if folder is None:
        raise ConfigError(
            f"Safe LoRA projects an adapter, and {task.id} is not one",
            got="a checkpoint without a separate adapter" if Path(task.id).is_dir() else "no such folder",
            expected="the folder of a PEFT LoRA adapter, such as `seawall tune` writes",
            remedy="name the adapter of the fine-tuning, or use --set gene.graft.method=safety_sft",
        )
    return folder


def _merge(base: Checkpoint, folder: Path, anchor: Anchor, config: GeneGraft, scratch: Path) -> SafeLoraReport:
    """Writes the checkpoint into the scratch folder, with the projected adapter inside."""
    model, tokenizer = base.load()
    wrapped = attach_saved_adapter(model, folder)
    report = project(wrapped, anchor, **config.safelora.model_dump())
    projected = scratch.with_name("projected")
    with silence_libraries():
        wrapped.save_pretrained(projected)
    save_model(merge_attached(wrapped, folder), tokenizer, scratch)
    (scratch / ADAPTER).parent.mkdir()
    projected.rename(scratch / ADAPTER)
    return report
