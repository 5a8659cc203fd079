"""DARE (arXiv 2311.03099): drop a random share of an update's numbers and rescale the others; RESTA's second variant.

RESTA (arXiv 2402.11746) adds a safety vector to the weights of a fine-tuned model. Its variant applies DARE to the
update of the fine-tuning first: W = W_aligned + DARE(W_task - W_aligned) + coefficient * safety vector.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.config.gene import GeneConfig
from seawall.methods.gene.task_model import merged_task
from seawall.models.files.companions import own_tokenizer
from seawall.models.files.open import Checkpoint
from seawall.models.files.save import save_model
from seawall.models.files.stream import matrices, outline
from seawall.models.lora.merge import adapter_factors
from seawall.models.lora.merged import MergeFidelity, survival
from seawall.models.lora.updates import LowRankUpdate
from seawall.runs.progress import Reporter


def drop_and_rescale(update: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Each number is dropped with probability `drop`, else divided by 1 - drop, so that the mean stays."""
    keep = torch.rand(update.shape, generator=generator) >= drop
    return torch.where(keep, update / (1 - drop), 0.0)


def task_checkpoint(
    base: Checkpoint, adapter: Path, folder: Path, config: GeneConfig, reporter: Reporter
) -> Checkpoint:
    """The base with the task's adapter in its weights, thinned out if `config.graft.drop` says so."""
    if config.graft.drop is None:
        return merged_task(base, adapter, folder, reporter)
    return dropped_task(base, adapter, folder, drop=config.graft.drop, seed=config.seed, reporter=reporter)


def dropped_task(
    base: Checkpoint, adapter: Path, folder: Path, *, drop: float, seed: int, reporter: Reporter
) -> Checkpoint:
    """The base with the task adapter's update, thinned out, as a temporary checkpoint.

    It is stored in float32 where the base's own type would round the update away.

    Raises:
        SeawallError: the adapter is not plain LoRA of the base.
    """
    reporter.stage(f"Merging {1 - drop:.0%} of the task's adapter into {base.id}")
    updates = adapter_factors(outline(base.folder).model, adapter)
    model, tokenizer = base.load()
    if not MergeFidelity(0.0, survival(_added(model, updates, drop, seed))).survives:
        del model
        reporter.say("the task's model is stored in float32: its own type would round the fine-tuning away")
        model, tokenizer = base.load(dtype="float32")
        for _ in _added(model, updates, drop, seed):
            pass
    own = own_tokenizer(adapter, model, tokenizer, base.config)
    save_model(model, tokenizer if own is None else own, folder)
    return base.at(folder)


def _added(
    model: PreTrainedModel, updates: list[LowRankUpdate], drop: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Adds the thinned updates to the weights; gives the realised and the intended change of each matrix."""
    transposed = {name for name, matrix in matrices(model).items() if matrix.transposed}
    for update in updates:
        product = update.product().cpu()
        generator = torch.Generator().manual_seed((seed + zlib.crc32(update.name.encode())) % 2**63)
        change = drop_and_rescale(product.mT if update.name in transposed else product, drop, generator)
        weight = model.get_parameter(update.name).data
        before = weight.float().cpu()
        weight.copy_(before + change)
        yield weight.float().cpu() - before, change
