"""The repaired model on disk: a delta, a checkpoint, and a certificate that the checkpoint is the repaired model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seawall.artifacts.delta import Delta
from seawall.errors import ArtifactError
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.hub import push_folder
from seawall.models.files.parity import compare_in_fresh_process, holds_weights, probe
from seawall.models.files.save import write_hashes, write_model
from seawall.runs.files import read_json, write_json, write_text
from seawall.runs.folder import MARKER, update_manifest
from seawall.runs.stage import clear_scratch, finished_stage, run_stage, stage_hash
from seawall.shell.context import Context

CARD, CERTIFICATE = "README.md", "parity.json"
PROBES = 4
"""Number of prompts of the parity check."""


def export_stage(context: Context, delta: Delta, documents: Mapping[str, str]) -> dict[str, Any] | None:
    """Writes `delta/` and `model/`; returns the parity certificate, or None without a verified checkpoint.

    Args:
        context: of the run.
        delta: the repair.
        documents: path in `model/` -> text: the model card, and results for the Hub.

    Raises:
        ArtifactError: the exported checkpoint is not the repaired model.
    """
    context.reporter.stage("Export: delta, checkpoint, parity in a fresh process")
    config = context.recipe.export
    settings = config.model_dump(mode="json", exclude={"push_to_hub", "private"})
    inputs = {"repair": stage_hash(context.run, "repair"), "export": settings}
    if config.delta:
        run_stage(context.run, "delta", inputs, delta.save, skipped=context.reporter.say)
    if not config.checkpoint:
        return None
    folder = run_stage(
        context.run, "model", inputs, lambda scratch: _write(context, scratch, documents), skipped=context.reporter.say
    )
    if not config.verify:
        return None
    parity = read_json(folder / CERTIFICATE)
    update_manifest(context.run, {"parity": parity})
    context.reporter.say(f"largest logit difference after export: {parity['max_logit_difference']}")
    return parity


def push_stage(context: Context, weights: str) -> None:
    """Uploads `model/` with its card to `export.push_to_hub`, unless these weights are there.

    Args:
        context: of a finished run.
        weights: fingerprint of the exported model.

    Raises:
        ConfigError: no login, no permission, no connection, or a public repository where a private one is due.
    """
    config = context.recipe.export
    if config.push_to_hub is None:
        return
    target = {"repository": config.push_to_hub, "weights": weights}
    pushed = read_json(context.run.manifest).get("hub", {})
    if target.items() <= pushed.items():
        return
    context.reporter.stage(f"Upload to {config.push_to_hub}")
    folder = finished_stage(context.run, "model")
    commit = push_folder(folder, config.push_to_hub, private=config.private, without=(MARKER,))
    update_manifest(context.run, {"hub": {**target, "commit": commit}})
    context.reporter.say(f"uploaded as commit {commit}")


def _write(context: Context, scratch: Path, documents: Mapping[str, str]) -> dict[str, str]:
    """Writes the files of `model/`; returns the hashes of the checkpoint's."""
    opened, config = context.opened, context.recipe.export
    clear_scratch(scratch)  # an interrupted export leaves an incomplete checkpoint
    staged = scratch / "checkpoint"
    write_model(opened.model, opened.tokenizer, staged, max_shard_size=config.max_shard_size)
    del opened
    if config.verify:
        write_json(scratch / CERTIFICATE, _verified(context, staged, scratch / "probes.safetensors"))
    hashes = write_hashes(staged)
    for path in sorted(staged.iterdir()):
        path.rename(scratch / path.name)
    staged.rmdir()
    for name, text in documents.items():
        (scratch / name).parent.mkdir(exist_ok=True)
        write_text(scratch / name, text)
    return hashes


def _verified(context: Context, staged: Path, probes: Path) -> dict[str, Any]:
    """The certificate of a written checkpoint; the model is no longer in memory afterwards.

    The files are compared with memory tensor by tensor. Then the model is freed, and a fresh process loads the files
    and compares their logits: only one of the two processes holds a model at a time.
    """
    opened = context.opened
    fingerprint = opened.digests.fingerprint()
    compared = holds_weights(staged, opened.model)
    prompts = [row.attack for row in context.prompts.pairs("validation")][:PROBES]
    probe(opened.model, opened.tokenizer, prompts, probes)
    del opened
    context.release()
    comparison = compare_in_fresh_process(context.checkpoint.at(staged), probes, weights=not compared)
    probes.unlink()
    same = compared or comparison["fingerprint"] == fingerprint
    return _certificate(comparison, context.recipe.export.max_logit_difference, fingerprint, same=same)


def _certificate(comparison: dict[str, Any], allowed: float, fingerprint: str, *, same: bool) -> dict[str, Any]:
    difference = float(comparison["max_logit_difference"])
    if difference > allowed or not same:
        raise ArtifactError(
            "the exported checkpoint is not the repaired model",
            got=f"a logit difference of {difference}, weights {'equal' if same else 'different'}",
            expected=f"at most {allowed} (export.max_logit_difference)",
            remedy="allow a small difference on another dtype or device; with equal settings, report this as a bug",
        )
    return {"max_logit_difference": difference, "allowed": allowed, "passed": True, "weights": fingerprint}


def add_delta(delta: Delta, model: PreTrainedModel, *, revert: bool = False) -> str:
    """Adds a delta to a model in place, or removes it; returns the model's fingerprint.

    Raises:
        ArtifactError: the delta was made from other weights.
    """
    state = model.state_dict()
    (delta.revert if revert else delta.apply)(state)
    fingerprint = model_fingerprint(model)
    expected = delta.base_model if revert else delta.result_model
    if fingerprint != expected:
        raise ArtifactError(
            "the delta matches the changed tensors, but other weights of this model differ from the original",
            got=f"weights {fingerprint[:23]}...",
            expected=f"weights {expected[:23]}...",
            remedy="name the checkpoint that the delta was made from",
        )
    return fingerprint
