"""Mean outputs of every expert alone, of which the differences are the experts' directions.

Legend: P token positions, D width, L MoE layers, S some of them, E experts, C all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from seawall.data.batching import Batch
from seawall.methods.steer.target import Prompt, TargetModel, last_logits, measured
from seawall.models.hidden.expert_outputs import expert_outputs
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import holders, shared_results


@dataclass(frozen=True, eq=False)
class ExpertMeans:
    """Mean outputs of experts alone (C, P, D), and of shared experts (L, P, D) where there are any; float64."""

    expert_CPD: Tensor
    shared_LPD: Tensor | None

    def minus(self, subtrahend: ExpertMeans) -> tuple[Tensor, Tensor | None]:
        """The differences, in float32."""
        experts_CPD = (self.expert_CPD - subtrahend.expert_CPD).float()
        if self.shared_LPD is None or subtrahend.shared_LPD is None:
            return experts_CPD, None
        return experts_CPD, (self.shared_LPD - subtrahend.shared_LPD).float()


def expert_means(
    target: TargetModel,
    moe: MoEModel,
    prompts: Sequence[Prompt],
    positions: Sequence[int],
    advance: Callable[[int], None],
) -> ExpertMeans:
    """Mean output of each expert alone at these positions, and of the layers' shared experts.

    One forward pass per prompt serves all experts of all layers. The processes of a launch divide the layers, and each
    runs all prompts, so that every sum is that of one process.

    Args:
        target: the model.
        moe: its MoE layers.
        prompts: the prompts.
        positions: counted from a prompt's end.
        advance: called after each pass with its number of prompts; of a launch, once for all.
    """
    count = holders(moe.model).count
    shares = [list(range(rank, moe.num_layers, count)) for rank in range(min(count, moe.num_layers))]
    sums = partial(
        _expert_sums,
        prompts=prompts,
        positions=tuple(positions),
        batch_size=target.batch_size,
        advance=advance if count == 1 else _no_advance,
    )
    width = int(target.model.config.get_text_config().hidden_size)
    total_LEPD = torch.zeros(moe.num_layers, moe.num_experts, len(positions), width, dtype=torch.float64)
    total_LPD, with_shared = torch.zeros_like(total_LEPD[:, 0]), False
    for layers, (experts_SEPD, shared_SPD) in zip(shares, shared_results(moe, sums, shares), strict=True):
        total_LEPD[layers] = experts_SEPD
        if shared_SPD is not None:
            total_LPD[layers], with_shared = shared_SPD, True
    if count > 1:
        advance(len(prompts))
    shared_LPD = total_LPD / len(prompts) if with_shared else None
    return ExpertMeans((total_LEPD / len(prompts)).flatten(0, 1), shared_LPD)


def _no_advance(prompts: int) -> None:
    """Reports no progress."""


def _expert_sums(
    moe: MoEModel,
    layers: Sequence[int],
    *,
    prompts: Sequence[Prompt],
    positions: tuple[int, ...],
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor | None]:
    """Sums over the prompts of S layers' outputs (S, E, P, D), and of their shared experts' (S, P, D), on the CPU."""
    width, row_of = (
        int(moe.model.config.get_text_config().hidden_size),
        {layer: row for row, layer in enumerate(layers)},
    )
    shape = (len(layers), moe.num_experts, len(positions), width)
    total_SEPD = torch.zeros(shape, dtype=torch.float64, device=moe.model.device)
    # A pass that exceeds memory is repeated, so its sums are added after its end.
    sums_SEPD = torch.zeros_like(total_SEPD)
    total_SPD, shared_SPD = torch.zeros_like(sums_SEPD[:, 0]), torch.zeros_like(sums_SEPD[:, 0])
    with_shared: set[int] = set()

    def add(layer: int, experts: tuple[int, ...], outputs_XBPD: Tensor) -> None:
        sums_SEPD[row_of[layer], list(experts)] += outputs_XBPD.double().sum(1).to(sums_SEPD.device)

    def add_shared(layer: int, output_BPD: Tensor) -> None:
        shared_SPD[row_of[layer]] += output_BPD.double().sum(0).to(shared_SPD.device)
        with_shared.add(layer)

    def read(batch: Batch) -> None:
        sums_SEPD.zero_()
        shared_SPD.zero_()
        last_logits(moe.model, batch)

    experts = {layer: range(moe.num_experts) for layer in layers}
    with expert_outputs(moe, experts, positions=positions, sink=add, shared_sink=add_shared):
        for places, _ in measured(prompts, batch_size, read):
            total_SEPD += sums_SEPD
            total_SPD += shared_SPD
            advance(len(places))
    return total_SEPD.cpu(), total_SPD.cpu() if with_shared else None
