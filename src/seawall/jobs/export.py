"""The repaired model on disk: a delta, a checkpoint, and a certificate that the checkpoint is the repaired model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seawall.artifacts.delta import Delta
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError
from seawall.models.files.checkpoint import save_model
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.parity import compare_in_fresh_process, probe
from seawall.runs.files import read_json, write_json, write_text
from seawall.runs.folder import update_manifest
from seawall.runs.publish import published
from seawall.runs.stage import clear_scratch, run_stage, stage_hash
from seawall.shell.context import Context
from seawall.shell.model import open_checkpoint

PROBES = 4
"""Number of prompts of the parity check."""


def export_stage(context: Context, delta: Delta, card: str) -> dict[str, Any] | None:
    """Writes `delta/` and `model/`; returns the parity certificate, or None without a verified checkpoint.

    Raises:
        ArtifactError: the exported checkpoint is not the repaired model.
    """
    context.reporter.stage("Export: delta, checkpoint, parity in a fresh process")
    config = context.recipe.export
    inputs = {"repair": stage_hash(context.run, "repair"), "export": config.model_dump(mode="json")}
    if config.delta:
        run_stage(context.run, "delta", inputs, delta.save)
    if not config.checkpoint:
        return None
    folder = run_stage(context.run, "model", inputs, lambda scratch: _write(context, scratch, card))
    if not config.verify:
        return None
    parity = read_json(folder / "parity.json")
    update_manifest(context.run, {"parity": parity})
    context.reporter.say(f"largest logit difference after export: {parity['max_logit_difference']}")
    return parity


def _write(context: Context, scratch: Path, card: str) -> None:
    opened, config = context.opened, context.recipe.export
    clear_scratch(scratch)  # an interrupted export leaves an incomplete checkpoint
    staged = scratch / "checkpoint"
    save_model(opened.model, opened.tokenizer, staged)
    if config.verify:
        prompts = [row.attack for row in context.prompts.pairs("validation")][:PROBES]
        probes = scratch / "probes.safetensors"
        probe(opened.model, opened.tokenizer, prompts, probes)
        comparison = compare_in_fresh_process(context.checkpoint.at(staged), probes)
        probes.unlink()
        certificate = _certificate(comparison, config.max_logit_difference, model_fingerprint(opened.model))
        write_json(scratch / "parity.json", certificate)
    for path in sorted(staged.iterdir()):
        path.rename(scratch / path.name)
    staged.rmdir()
    write_text(scratch / "README.md", card)


def _certificate(comparison: dict[str, Any], allowed: float, fingerprint: str) -> dict[str, Any]:
    difference = float(comparison["max_logit_difference"])
    same = comparison["fingerprint"] == fingerprint
    if difference > allowed or not same:
        raise ArtifactError(
            "the exported checkpoint is not the repaired model",
            got=f"a logit difference of {difference}, weights {'equal' if same else 'different'}",
            expected=f"at most {allowed} (export.max_logit_difference)",
            remedy="allow a small difference on another dtype or device; with equal settings, report this as a bug",
        )
    return {"max_logit_difference": difference, "allowed": allowed, "passed": True, "weights": fingerprint}


def apply_delta(delta: Delta, config: ModelConfig, output: Path, *, revert: bool = False) -> str:
    """Writes a checkpoint with a delta added to its model, or removed from it; returns its fingerprint.

    Args:
        delta: the change.
        config: the base model; with `revert`, the repaired one.
        output: a new or empty folder.
        revert: remove the delta.
    """
    model, tokenizer = open_checkpoint(config).load()
    fingerprint = add_delta(delta, model, revert=revert)
    with published(output) as scratch:
        save_model(model, tokenizer, scratch)
    return fingerprint


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
