"""Safe LoRA: an adapter is projected onto the directions of alignment after training. arXiv 2405.16833, section 3.

For the update dW = B A of a weight matrix and C = V V^T / ||V||_F with V = W_aligned - W_base, the projected update is
C dW = (C B) A: B alone is written. Matrices whose update and its projection have a low cosine are projected, either
those below a threshold or a number of them, the lowest first. Every expert of a stack is a matrix of its own.

The cosine is computed from products of the factors' size: with G = A A^T (r, r) and <X, Y> = sum(X * Y),

    <C B A, B A> = <B^T C B, G>,  ||B A||^2 = <B^T B, G>,  ||C B A||^2 = <(C B)^T C B, G>.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seawall.artifacts.anchor import Anchor
from seawall.errors import ConfigError
from seawall.methods.tune.penalty import penalised, projection
from seawall.models.lora.updates import LowRankUpdate, adapter_updates

Unmoved = Literal["keep", "remove"]
"""What becomes of the update of a matrix that alignment did not move: it stays, as in the authors' code, or it goes,
since no direction of it is known to be safe."""


@dataclass(frozen=True, slots=True)
class MatrixProjection:
    """What was done to the update of one matrix.

    Attributes:
        name: of the parameter in the model without adapters, with the number of the expert where there are several.
        cosine: of C dW and dW; None where either is zero.
        projected: whether it was projected.
        kept: the part of the update's Frobenius norm that is left; 1 where it was not projected. With the authors' C,
            which is no projector, it can be above 1.
    """

    name: str
    cosine: float | None
    projected: bool
    kept: float


@dataclass(frozen=True, slots=True)
class SafeLoraReport:
    """What was done to an adapter, matrix by matrix in the model's order."""

    matrices: tuple[MatrixProjection, ...]

    @property
    def projected(self) -> tuple[str, ...]:
        """The names of the matrices that were projected."""
        return tuple(one.name for one in self.matrices if one.projected)

    def __str__(self) -> str:
        """One line for people, such as `12 of 60 updates projected, cosines from .02 to .81, ...`."""
        cosines = [one.cosine for one in self.matrices if one.cosine is not None]
        between = f"cosines from {min(cosines):.2f} to {max(cosines):.2f}" if cosines else "no cosine"
        without = len(self.matrices) - len(cosines)
        kept = [one.kept for one in self.matrices if one.projected]
        left = f", {sum(kept) / len(kept):.0%} of their norm left" if kept else ""
        return f"{len(kept)} of {len(self.matrices)} updates projected{left}; {between}, {without} without one"


def project(
    model: nn.Module,
    anchor: Anchor,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    projector: Literal["reference", "subspace"] = "reference",
    unmoved: Unmoved = "keep",
) -> SafeLoraReport:
    """Project a trained LoRA adapter in place, in memory alone: save it afterwards.

    Args:
        model: with an active LoRA adapter, unmerged; whether it trains does not matter. What else was trained stays.
        anchor: of the aligned model that was fine-tuned. C is exact where it keeps every direction (`energy: 1.0`).
        threshold: project where the cosine is below it; the paper takes .35 for Llama-2.
        layers: project so many matrices, those of the lowest cosines; in place of a threshold.
        projector: C; `subspace` is the projector on the same directions, which does not scale what lies within.
        unmoved: what becomes of the updates of matrices in which the two checkpoints do not differ. Those that are
            removed come on top of `layers`.

    Raises:
        ConfigError: neither or both of threshold and layers, or one out of range; no adapter; matrices that the anchor
            lacks or has in other shapes; an adapter that is merged or not finite. Nothing was written then.
        UnsupportedModelError: an adapter other than LoRA.
    """
    _require_one(threshold, layers)
    updates = _updates(model, anchor)
    moved = [_measured(update, anchor, projector) for update in updates]
    chosen = _chosen(moved, threshold=threshold, layers=layers, unmoved=unmoved)
    for update, one, picked in zip(updates, moved, chosen, strict=True):
        B, _ = update.factors()
        update.replace_B(torch.where(picked[..., None, None], one.inside, B.float()))
    pairs = zip(updates, moved, chosen, strict=True)
    return SafeLoraReport(tuple(row for update, one, picked in pairs for row in _rows(update, one, picked)))


@dataclass(frozen=True, eq=False)
class _Measured:
    """C B of one update, and per matrix (...): whether there is an update, the cosine, the norm of C B A over B A's."""

    inside: Tensor
    updated: Tensor
    cosine: Tensor
    ratio: Tensor


@torch.no_grad()
def _measured(update: LowRankUpdate, anchor: Anchor, projector: Literal["reference", "subspace"]) -> _Measured:
    B, A = (factor.float() for factor in update.factors())
    if not bool(B.isfinite().all() and A.isfinite().all()):
        raise ConfigError(
            f"the adapter of {update.name} holds numbers that are not finite",
            expected="finite factors",
            remedy="train it again, with a lower learning rate",
        )
    inside = projection(anchor, update.name, projector, seed=0).to(B.device).inside(B)
    gram = A @ A.mT
    whole = _norm(B, B, gram).sqrt()
    projected = _norm(inside, inside, gram).sqrt()
    tiny = torch.finfo(torch.float32).tiny
    cosine = _norm(inside, B, gram) / (whole * projected).clamp_min(tiny)
    cosine = torch.where((whole > 0) & (projected > 0), cosine.clamp(-1.0, 1.0), torch.nan)
    return _Measured(inside, whole > 0, cosine, projected / whole.clamp_min(tiny))


def _norm(left: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """<X A, Y A> (...) of X and Y (..., rows, r) by G = A A^T."""
    return ((left.mT @ right) * gram).sum((-2, -1)).clamp_min(0.0)


def _chosen(
    measured: Sequence[_Measured], *, threshold: float | None, layers: int | None, unmoved: Unmoved
) -> list[Tensor]:
    """Which matrices of every update are projected, as masks (...)."""
    cosines = torch.cat([one.cosine.reshape(-1).cpu() for one in measured])
    if threshold is not None:
        picked = cosines < threshold  # no cosine is below nothing
    else:
        order = cosines.argsort(stable=True)[:layers]  # NaN comes last
        picked = torch.zeros_like(cosines, dtype=torch.bool).index_fill(0, order, True) & ~cosines.isnan()
    if unmoved == "remove":
        picked |= cosines.isnan() & torch.cat([one.updated.reshape(-1).cpu() for one in measured])
    sizes = [one.cosine.numel() for one in measured]
    parts = zip(torch.split(picked, sizes), measured, strict=True)
    return [part.reshape(one.cosine.shape).to(one.cosine.device) for part, one in parts]


def _rows(update: LowRankUpdate, one: _Measured, picked: Tensor) -> list[MatrixProjection]:
    names = [update.name] if picked.ndim == 0 else [f"{update.name}[{expert}]" for expert in range(len(picked))]
    columns = (tensor.reshape(-1).tolist() for tensor in (one.cosine, picked, one.ratio))
    return [
        MatrixProjection(name, None if math.isnan(cosine) else cosine, taken, ratio if taken else 1.0)
        for name, cosine, taken, ratio in zip(names, *columns, strict=True)
    ]


def _updates(model: nn.Module, anchor: Anchor) -> list[LowRankUpdate]:
    updates = adapter_updates(model)
    if not updates:
        raise ConfigError("there is no adapter to project", expected="a model with a LoRA adapter of PEFT")
    merged = next((one.name for one in updates if one.merged), None)
    if merged is not None:
        raise ConfigError(
            "the adapter is merged into the weights, where it can be projected no more",
            got=f"{merged} merged",
            remedy="load it again, or call unmerge_adapter()",
        )
    return penalised(anchor, updates)


def _require_one(threshold: float | None, layers: int | None) -> None:
    if (threshold is None) == (layers is None):
        raise ConfigError(
            "Safe LoRA projects by a threshold or by a number of layers",
            got="neither" if threshold is None else "both",
            expected="one of the two",
        )
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise ConfigError("the threshold of Safe LoRA is wrong", got=threshold, expected="a cosine, in [-1, 1]")
    if layers is not None and layers < 0:
        raise ConfigError("the number of layers to project is wrong", got=layers, expected="0 or more")
