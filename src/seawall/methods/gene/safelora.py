"""Safe LoRA (arXiv 2405.16833) as a baseline of grafting: project the task's adapter onto the alignment directions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from seawall.artifacts.anchor import NAME as ANCHOR
from seawall.artifacts.anchor import Anchor
from seawall.artifacts.graft import ADAPTER, Graft
from seawall.config.gene import GeneGraft
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.errors import ConfigError
from seawall.methods.gene.task_model import base_of, check_merged, require_ungrafted, task_adapter
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.safelora import SafeLoraReport, project
from seawall.models.files.open import Checkpoint
from seawall.models.files.rewrite import checkpoint_fingerprint
from seawall.models.files.save import save_model
from seawall.models.files.stream import outline
from seawall.models.lora.merge import attach_saved_adapter, merge_attached
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import file_hash, storage_errors
from seawall.runs.progress import Reporter
from seawall.runs.publish import published
from seawall.shell.model import open_checkpoint


def write_projected(task: ModelConfig, output: Path, config: GeneGraft, *, reporter: Reporter) -> None:
    """Writes base and projected adapter as one checkpoint; the output folder is published atomically.

    Args:
        task: the adapter's folder, and how to load its base.
        output: a new or empty folder.
        config: the anchor or the base model, and the settings of the projection.
        reporter: receives progress.

    Raises:
        SeawallError: no adapter, an anchor of another model, or one without all of V where the base is unknown. Nothing
            is written then.
    """
    begun = time.monotonic()
    folder, base = open_adapter(task, "Safe LoRA projects")
    anchor, difference = open_alignment(base, config)
    with storage_errors(output), published(output) as scratch:
        reporter.stage(f"Projecting the task's adapter, and merging it into {base.id}")
        report = _merge(base, folder, (anchor, difference), config, scratch)
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
            anchor=anchor_hash(config),
            note=f"{report}; nothing to revert: the task's adapter was not changed",
        )
        if config.verify:
            reporter.stage("Reload and compare")
            check = check_merged(base, scratch / ADAPTER, scratch, allowed=config.max_logit_difference)
            graft = replace(graft, check=check)
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)


def open_adapter(task: ModelConfig, what: str) -> tuple[Path, Checkpoint]:
    """The folder of the task's adapter, and its base, which is the aligned model.

    Args:
        task: the adapter's folder, and how to load its base.
        what: the beginning of a message, such as `Safe LoRA projects`.

    Raises:
        SeawallError: no adapter, no base, or a graft in either.
    """
    folder = task_adapter(task)
    if folder is None:
        raise ConfigError(
            f"{what} an adapter, and {task.id} is not one",
            got="a checkpoint without a separate adapter" if Path(task.id).is_dir() else "no such folder",
            expected="the folder of a PEFT LoRA adapter, such as `seawall tune` writes",
            remedy="name the adapter of the fine-tuning, or use --set gene.graft.method=safety_sft",
        )
    base = base_of(folder, task)
    require_ungrafted(base)
    return folder, base


def open_alignment(aligned: Checkpoint, config: GeneGraft) -> tuple[Anchor | None, AlignmentDifference | None]:
    """The anchor (`gene.graft.anchor`), and the aligned model with its base; None for what is not known.

    The base is `gene.graft.base`, and `lab-original` for `lab`.

    Raises:
        SeawallError: no such base; an anchor of another model.
    """
    anchor = None if config.anchor is None else Anchor.load(Path(config.anchor).expanduser())
    if anchor is not None:
        anchor.require_model(aligned.fingerprint)
    base = config.base
    if base is None and aligned.id == LAB:
        base = aligned.config.model_copy(update={"id": LAB_ORIGINAL})
    return anchor, None if base is None else AlignmentDifference(aligned.outline, open_checkpoint(base).outline)


def anchor_hash(config: GeneGraft) -> str | None:
    """Hash of the anchor's JSON; None without one."""
    return None if config.anchor is None else file_hash(Path(config.anchor).expanduser() / f"{ANCHOR}.json")


def _merge(
    base: Checkpoint,
    folder: Path,
    alignment: tuple[Anchor | None, AlignmentDifference | None],
    config: GeneGraft,
    scratch: Path,
) -> SafeLoraReport:
    """Writes the checkpoint into the scratch folder, with the projected adapter inside."""
    model, tokenizer = base.load()
    wrapped = attach_saved_adapter(model, folder)
    anchor, difference = alignment
    report = project(wrapped, anchor, difference=difference, **config.safelora.model_dump())
    projected = scratch.with_name("projected")
    with silence_libraries():
        wrapped.save_pretrained(projected)
    save_model(merge_attached(wrapped, folder), tokenizer, scratch)
    (scratch / ADAPTER).parent.mkdir()
    projected.rename(scratch / ADAPTER)
    return report
