"""`seawall apply`: a delta added to its model, or removed from it, file by file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from seawall.artifacts.delta import Delta
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.jobs.export import CARD, CERTIFICATE, add_delta
from seawall.models.files.open import Checkpoint
from seawall.models.files.rewrite import add_to_checkpoint, checkpoint_fingerprint
from seawall.models.files.save import save_model
from seawall.models.files.stream import CheckpointOutline, outline
from seawall.runs.folder import MARKER
from seawall.runs.publish import published
from seawall.shell.model import open_checkpoint

_OF_RUN = (CARD, CERTIFICATE, MARKER)
"""Files of an exported model that describe its weights, and not those that come out."""


def apply_delta(delta: Delta, config: ModelConfig, output: Path, *, revert: bool = False) -> str:
    """Writes a checkpoint with a delta added to its model, or removed from it; returns its fingerprint.

    Memory holds one file of the checkpoint and the delta; a checkpoint whose own Python code defines its layout is
    loaded in full. The other files of the checkpoint are copied, except its model card.

    Args:
        delta: the change.
        config: the base model; with `revert`, the repaired one.
        output: a new or empty folder.
        revert: remove the delta.

    Raises:
        ArtifactError: the delta was made from other weights.
    """
    checkpoint = open_checkpoint(config)
    start, end = (delta.result_model, delta.base_model) if revert else (delta.base_model, delta.result_model)
    try:
        return _streamed(delta, checkpoint.outline, output, start=start, end=end)
    except UnsupportedModelError:
        return _in_memory(delta, checkpoint, output, revert=revert)


def _streamed(delta: Delta, checkpoint: CheckpointOutline, output: Path, *, start: str, end: str) -> str:
    _require_start(checkpoint_fingerprint(checkpoint), start=start, end=end)
    shapes, aliases = checkpoint.shapes, checkpoint.aliases()
    # A tied weight is stored under one of its names.
    names = {aliases.get(name, name): name for name in delta.slices}

    def bits(stored: str, expert: int | None) -> Tensor:
        return delta.slice_bits(names[stored], expert, shapes[stored])

    unchanged = {
        (stored, expert)
        for stored, name in names.items()
        if (indices := delta.slices[name]) is not None
        for expert in set(range(shapes[stored][0])) - set(indices)
    }
    with published(output) as scratch:
        add_to_checkpoint(
            checkpoint,
            frozenset(names),
            bits,
            scratch,
            originals=None,
            unchanged=unchanged,
            without=_OF_RUN,
        )
        fingerprint = checkpoint_fingerprint(outline(scratch))
        if fingerprint != end:
            raise ArtifactError(
                "the delta's own bits do not lead to the weights it names",
                got=f"weights {fingerprint[:23]}...",
                expected=f"weights {end[:23]}...",
                remedy="restore the delta from a copy",
            )
    return fingerprint


def _require_start(fingerprint: str, *, start: str, end: str) -> None:
    if fingerprint != start:
        is_done = fingerprint == end
        raise ArtifactError(
            "the delta does not fit this model, whose weights are others",
            got="the model that this operation results in" if is_done else f"weights {fingerprint[:23]}...",
            expected=f"weights {start[:23]}...",
            remedy="nothing is left to do" if is_done else "name the model that the delta was made from",
        )


def _in_memory(delta: Delta, checkpoint: Checkpoint, output: Path, *, revert: bool) -> str:
    model, tokenizer = checkpoint.load()
    fingerprint = add_delta(delta, model, revert=revert)
    with published(output) as scratch:
        save_model(model, tokenizer, scratch)
    return fingerprint
