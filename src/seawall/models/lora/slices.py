"""Which experts an adapter of stacks changes, and whether its B is packed as PEFT reads it.

Legend: E experts of a stack, r rank of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import f as f_distribution
from torch import Tensor

from seawall.models.lora.findings import ExpertCount, Finding

_SIGNIFICANT = 1e-3
"""Level of the F test by which the columns of B belong together in the other order."""


def expert_findings(tensors: Mapping[str, Tensor], stacks: Mapping[str, int]) -> tuple[ExpertCount, list[Finding]]:
    """Experts without an update, unless B is packed in another order, in which its slices are of no expert."""
    names = [name for name in stacks if ".lora_B." in name]
    swapped = _packed_otherwise([(_column_norms(tensors[name]), stacks[name]) for name in names])
    dropped: list[str] = []
    idle: list[str] = []
    total = touched = 0
    for name in names:
        experts, A_name = stacks[name], name.replace(".lora_B.", ".lora_A.")
        B, A = tensors[name], tensors[A_name]
        # PEFT keeps A as (experts, r) x columns and B as rows x (r, experts): see its ParamWrapper.
        used_A = A.reshape(experts, -1).any(1).tolist()
        used_B = B.reshape(B.shape[0], -1, experts).any(0).any(0).tolist()
        total, touched = total + experts, touched + sum(a and b for a, b in zip(used_A, used_B, strict=True))
        place = name.rpartition(".lora_")[0]
        dropped += [f"{place} expert {expert}" for expert in range(experts) if not used_A[expert]]
        idle += [f"{place} expert {expert}" for expert in range(experts) if used_A[expert] and not used_B[expert]]
    count = ExpertCount(touched, total, len(names))
    if swapped:
        return count, [
            Finding(
                "packing",
                "B of the stacks is packed as (experts, r), and PEFT reads (r, experts): the sizes of its columns "
                "belong together by blocks, so every expert would get parts of others",
            )
        ]
    findings = []
    if dropped:
        findings.append(Finding("experts", f"{len(dropped)} experts were dropped, A and B zero: {_first(dropped)}"))
    if idle and touched:
        text = f"{len(idle)} experts have no update, B zero (no training token reached them, or it was dropped)"
        findings.append(Finding("experts", f"{text}: {_first(idle)}", is_wrong=False))
    return count, findings


def _packed_otherwise(stacks: Sequence[tuple[np.ndarray[Any, Any], int]]) -> bool:
    """Whether B's columns have alike norms by blocks, (experts, r), and not by turns, (r, experts), as PEFT reads.

    Experts are used unequally in training, so that the columns of one expert are alike in size. One F test for each
    order, over all stacks: between the groups of columns against within. Factors from a singular value decomposition
    are alike by blocks too, because the first component of every expert is the largest; they give no sign.
    """
    if all(_falls_by_component(norms, experts) for norms, experts in stacks):
        return False
    chances = []
    for order in ("turns", "blocks"):
        between = within = 0.0
        groups = freedom = 0
        for norms, experts in stacks:
            rank = len(norms) // experts
            if rank < 2 or not norms.any():
                continue
            logs = np.log(norms + 1e-3 * norms.max())
            table = logs.reshape(rank, experts).T if order == "turns" else logs.reshape(experts, rank)
            means = table.mean(1)
            between += rank * float(((means - means.mean()) ** 2).sum())
            within += float(((table - means[:, None]) ** 2).sum())
            groups, freedom = groups + experts - 1, freedom + experts * (rank - 1)
        if not freedom:
            return False
        ratio = (between / groups) / max(within / freedom, 1e-12)
        chances.append(float(f_distribution.sf(ratio, groups, freedom)))
    by_turns, by_blocks = chances
    return by_blocks < _SIGNIFICANT and by_blocks < _SIGNIFICANT * by_turns


def _falls_by_component(norms: np.ndarray[Any, Any], experts: int) -> bool:
    """Whether the mean norm falls from each component to the next, read in PEFT's order."""
    means = norms.reshape(-1, experts).mean(1)
    return bool((np.diff(means) < 0).all())


def _column_norms(B: Tensor) -> np.ndarray[Any, Any]:
    norms: np.ndarray[Any, Any] = B.double().norm(dim=0).numpy()
    return norms


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
