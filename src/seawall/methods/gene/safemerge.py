"""SafeMERGE (arXiv 2503.17239): average the task's adapter with a safety adapter where it leaves alignment.

For the update dW of each matrix, C = V V^T / ||V||_F with V = W_aligned - W_base gives the cosine of dW and C dW. Below
the threshold the matrix gets (1 - weight) * dW + weight * dW_safe, else it stays dW. The gene is the safety adapter.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from seawall.artifacts.adapter import Factors, save_adapter
from seawall.artifacts.anchor import Anchor
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import ADAPTER, Graft
from seawall.config.gene import GeneGraft
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.methods.gene.match import require_fit
from seawall.methods.gene.safelora import anchor_hash, open_adapter, open_alignment
from seawall.methods.gene.task_model import check_merged, vocabulary_hash
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.safelora import Deviating, deviating
from seawall.models.files.open import Checkpoint
from seawall.models.files.rewrite import add_to_checkpoint, checkpoint_fingerprint
from seawall.models.files.stream import outline
from seawall.models.lora.attach import attach_adapter, find_points
from seawall.models.lora.merge import attach_saved_adapter
from seawall.runs.files import storage_errors
from seawall.runs.progress import Reporter
from seawall.runs.publish import published

WEIGHT = 0.2
"""The share of the safety adapter in a merged matrix, as in the authors' code."""


def write_merged(task: ModelConfig, gene: Gene, output: Path, config: GeneGraft, *, reporter: Reporter) -> None:
    """Writes the aligned model with the merged adapters as one checkpoint; the folder is published atomically.

    Args:
        task: the task adapter's folder, and how to load its base.
        gene: the safety adapter.
        output: a new or empty folder.
        config: the anchor or the base model, threshold and weight.
        reporter: receives progress.

    Raises:
        SeawallError: no adapter; a gene of another family; an anchor of another model. Nothing is written then.
    """
    begun = time.monotonic()
    folder, aligned = open_adapter(task, "SafeMERGE merges")
    require_fit(gene, aligned.outline, vocabulary_hash(aligned.tokenizer), what=aligned.id)
    anchor, difference = open_alignment(aligned, config)
    with storage_errors(output), published(output) as scratch:
        reporter.stage(f"Merging the task's adapter with the gene, on {aligned.id}")
        merged, selected, total = _merged(aligned, folder, gene, (anchor, difference), config)
        save_adapter(scratch / ADAPTER, merged.points, merged.factors, merged.scaling)
        add_to_checkpoint(
            aligned.outline,
            frozenset(merged.points),
            merged.update,
            scratch,
            originals=None,
            unchanged=merged.unchanged,
        )
        graft = Graft(
            task_model=aligned.fingerprint,
            task_id=task.id,
            gene=gene.fingerprint,
            gene_made=gene.made,
            form="merged",
            coefficients={},
            tuned="fixed",
            shots=0,
            result=checkpoint_fingerprint(outline(scratch)),
            method="safemerge",
            anchor=anchor_hash(config),
            note=f"{selected} of {total} updates merged with the gene; nothing to revert: the task's adapter was not "
            "changed",
        )
        if config.verify:
            reporter.stage("Reload and compare")
            check = check_merged(aligned, scratch / ADAPTER, scratch, allowed=config.max_logit_difference)
            graft = replace(graft, check=check)
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)


def _merged(
    aligned: Checkpoint,
    folder: Path,
    gene: Gene,
    alignment: tuple[Anchor | None, AlignmentDifference | None],
    config: GeneGraft,
) -> tuple[Gene, int, int]:
    """The merged adapter, the number of merged matrices, and of all."""
    model, _ = aligned.load()
    choice = deviating(attach_saved_adapter(model, folder), *alignment, **config.safelora.model_dump())
    names = [update.name for update in choice.updates]
    if not gene.points.keys() & set(names):
        raise ConfigError(
            "the gene and the task's adapter change different matrices, so there is nothing to merge",
            got=f"a gene of {min(gene.points)}, an adapter of {names[0]}",
            expected="matrices in common",
            remedy="extract a gene with gene.targets as the adapter's",
        )
    weight = WEIGHT if config.safety_weight is None else config.safety_weight
    factors = merged_factors(choice, gene, weight)
    bare = outline(aligned.folder).model
    points = {name: point for name, point in find_points(bare).items() if name in factors}
    rank = next(iter(factors.values())).A.shape[-2]
    points = dict(attach_adapter(bare, points, rank=rank, scaling=1.0).points)
    merged = replace(gene, points=points, factors=factors, scaling=1.0, made="SafeMERGE", parents=(gene.fingerprint,))
    return merged, sum(int(mask.sum()) for mask in choice.selections), sum(mask.numel() for mask in choice.selections)


def merged_factors(choice: Deviating, gene: Gene, weight: float) -> dict[str, Factors]:
    """Factors of (1 - weight) dW + weight dW_safe in the selected matrices, and of dW in the others.

    They are put side by side, so the sum is exact; a matrix that the gene lacks has a dW_safe of 0.
    """
    factors: dict[str, Factors] = {}
    for update, mask in zip(choice.updates, choice.selections, strict=True):
        B, A = (factor.detach().float().cpu() for factor in update.factors())
        selected = mask.cpu().float()[..., None, None]
        safe = gene.factors.get(update.name, _no_factors(B, A, gene.rank))
        sides = ((1 - weight * selected) * update.scaling * B, weight * selected * gene.scaling * safe.B)
        factors[update.name] = Factors(torch.cat(sides, dim=-1), torch.cat((A, safe.A), dim=-2))
    return factors


def _no_factors(B: Tensor, A: Tensor, rank: int) -> Factors:
    return Factors(B.new_zeros(*B.shape[:-1], rank), A.new_zeros(*A.shape[:-2], rank, A.shape[-1]))
