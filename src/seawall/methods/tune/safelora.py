"""Safe LoRA: project a trained adapter onto the alignment directions. arXiv 2405.16833, section 3.

For the update dW = B A of a weight matrix and C = V V^T / ||V||_F with V = W_aligned - W_base, the projected update is
C dW = (C B) A, so only B changes. Matrices are projected where the cosine of update and projected update is low: below
a threshold, or a given number of them, lowest first. Each expert of a stack counts as one matrix.

The cosine needs only products of the factors' size: with G = A A^T (r, r) and <X, Y> = sum(X * Y),

    <C B A, B A> = <B^T C B, G>,  ||B A||^2 = <B^T B, G>,  ||C B A||^2 = <(C B)^T C B, G>.

C B comes from the two checkpoints (`alignment.py`) or from an anchor. The authors' C needs all of V: an anchor that
leaves directions out is refused for it, because other cosines would choose other matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from seawall.artifacts.anchor import Anchor
from seawall.errors import ConfigError
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.penalty import penalised, projection
from seawall.models.lora.updates import LowRankUpdate, adapter_updates

_COMPLETE = 1 - 1e-4
"""Share of the squared norm of V from which an anchor counts as all of V; its singular values are float32."""
Unmoved = Literal["keep", "remove"]
"""The update of a matrix with V = 0: `keep` it, as in the authors' code, or `remove` it, since no direction of the
matrix is known to be safe."""


@dataclass(frozen=True, slots=True)
class MatrixProjection:
    """The projection of one matrix's update.

    Attributes:
        name: of the parameter in the model without adapters, with `[expert]` for a stack.
        cosine: of C dW and dW; None where either is zero.
        projected: whether the update was projected.
        kept: ratio of the update's Frobenius norms after and before; 1 without a projection. With the authors' C, which
            is not a projector, it can exceed 1.
    """

    name: str
    cosine: float | None
    projected: bool
    kept: float


@dataclass(frozen=True, slots=True)
class SafeLoraReport:
    """The projection of an adapter, matrix by matrix in the model's order."""

    matrices: tuple[MatrixProjection, ...]

    @property
    def projected(self) -> tuple[str, ...]:
        """The names of the matrices that were projected."""
        return tuple(matrix.name for matrix in self.matrices if matrix.projected)

    def __str__(self) -> str:
        """One line for people, such as `12 of 60 updates projected, cosines from .02 to .81, ...`."""
        cosines = [matrix.cosine for matrix in self.matrices if matrix.cosine is not None]
        between = f"cosines from {min(cosines):.2f} to {max(cosines):.2f}" if cosines else "no cosine"
        without = len(self.matrices) - len(cosines)
        ratios = [matrix.kept for matrix in self.matrices if matrix.projected]
        norm = f", {sum(ratios) / len(ratios):.0%} of their norm left" if ratios else ""
        return f"{len(ratios)} of {len(self.matrices)} updates projected{norm}; {between}, {without} without one"


def project(
    model: nn.Module,
    anchor: Anchor | None,
    *,
    difference: AlignmentDifference | None = None,
    threshold: float | None = None,
    layers: int | None = None,
    projector: Literal["reference", "subspace"] = "reference",
    unmoved: Unmoved = "keep",
) -> SafeLoraReport:
    """Projects a trained LoRA adapter in place, in memory; save the model afterwards.

    Args:
        model: with an active, unmerged LoRA adapter. Other trained parameters are left as they are.
        anchor: of the aligned model that was fine-tuned; None where `difference` alone is used.
        difference: the aligned and the base checkpoint, from which `reference` takes all of V. Without it the anchor
            must keep every direction (`energy: 1.0`).
        threshold: project matrices with a lower cosine; the paper uses .35 for Llama-2.
        layers: project this number of matrices, lowest cosines first, instead of a threshold.
        projector: choice of C; `subspace` is the projector on the same directions, without the scaling of `reference`.
        unmoved: what to do with updates of matrices with V = 0. Removed updates do not count towards `layers`.

    Raises:
        ConfigError: neither or both of threshold and layers, or a value out of range; no adapter; matrices that the
            anchor lacks or has in other shapes; an anchor without all of V, for `reference`; an adapter that is merged
            or not finite. The model is unchanged then.
        UnsupportedModelError: an adapter other than LoRA.
    """
    updates, measurements, selections = deviating(
        model, anchor, difference, threshold=threshold, layers=layers, projector=projector, unmoved=unmoved
    )
    rows: list[MatrixProjection] = []
    for update, measurement, selected in zip(updates, measurements, selections, strict=True):
        B, _ = update.factors()
        update.replace_B(torch.where(selected[..., None, None], measurement.inside, B.float()))
        rows += _rows(update, measurement, selected)
    return SafeLoraReport(tuple(rows))


class Deviating(NamedTuple):
    """The updates of an adapter, their measurements, and masks (...) of the matrices that leave alignment."""

    updates: list[LowRankUpdate]
    measurements: list[Measurement]
    selections: list[Tensor]


def deviating(
    model: nn.Module,
    anchor: Anchor | None,
    difference: AlignmentDifference | None,
    *,
    threshold: float | None,
    layers: int | None,
    projector: Literal["reference", "subspace"],
    unmoved: Unmoved,
) -> Deviating:
    """The matrices whose update has a low cosine with its projection; arguments and errors as `project`."""
    _require_one(threshold, layers)
    updates = _updates(model, anchor)
    inside = _inside(updates, anchor, difference, projector)
    # C dW = (C B) A and the cosine of C dW and dW, for every matrix.
    measurements = [_measure(update, inside[update.name]) for update in updates]
    # Project where the cosine is low (section 3): below the threshold, or the `layers` lowest.
    selections = _select(measurements, threshold=threshold, layers=layers, unmoved=unmoved)
    return Deviating(updates, measurements, selections)


@dataclass(frozen=True, eq=False)
class Measurement:
    """C B of one update; per matrix (...): whether the update is non-zero, the cosine, and ||C B A|| / ||B A||."""

    inside: Tensor
    updated: Tensor
    cosine: Tensor
    ratio: Tensor


@torch.no_grad()
def _inside(
    updates: Sequence[LowRankUpdate],
    anchor: Anchor | None,
    difference: AlignmentDifference | None,
    projector: Literal["reference", "subspace"],
) -> dict[str, Tensor]:
    """C B of every update."""
    if projector == "reference" and difference is not None:
        return difference.inside(updates)
    if anchor is None:
        raise ConfigError(f"Safe LoRA with projector: {projector} needs an anchor", got="none")
    if projector == "reference":
        _require_complete(anchor, updates)
    factors = {update.name: update.factors()[0].float() for update in updates}
    return {name: projection(anchor, name, projector, seed=0).to(B.device).inside(B) for name, B in factors.items()}


def _require_complete(anchor: Anchor, updates: Sequence[LowRankUpdate]) -> None:
    """Refuse an anchor that leaves out directions of V: the cosines of the authors' C are those of all of V."""
    energies = {update.name: float(anchor.matrices[update.name].energies.min()) for update in updates}
    name = min(energies, key=energies.__getitem__)
    if energies[name] < _COMPLETE:
        raise ConfigError(
            "the anchor leaves out directions of alignment, so Safe LoRA would choose other matrices than its authors'",
            got=f"{energies[name]:.0%} of the squared norm of V in {name}",
            expected="all of V",
            remedy="name the base model, make the anchor with rank: null and energy: 1.0, or take projector: subspace",
        )


@torch.no_grad()
def _measure(update: LowRankUpdate, projected_B: Tensor) -> Measurement:
    B, A = (factor.float() for factor in update.factors())
    inside = projected_B.to(B.device)
    gram = A @ A.mT
    norm = _product(B, B, gram).sqrt()
    projected = _product(inside, inside, gram).sqrt()
    tiny = torch.finfo(torch.float32).tiny
    cosine = _product(inside, B, gram) / (norm * projected).clamp_min(tiny)
    cosine = torch.where((norm > 0) & (projected > 0), cosine.clamp(-1.0, 1.0), torch.nan)
    return Measurement(inside, norm > 0, cosine, projected / norm.clamp_min(tiny))


def _product(X: Tensor, Y: Tensor, gram: Tensor) -> Tensor:
    """<X A, Y A> (...) for X and Y (..., rows, r) with G = A A^T."""
    return ((X.mT @ Y) * gram).sum((-2, -1)).clamp_min(0.0)


def _select(
    measurements: Sequence[Measurement], *, threshold: float | None, layers: int | None, unmoved: Unmoved
) -> list[Tensor]:
    """The matrices of each update to project, as masks (...)."""
    cosines = torch.cat([measurement.cosine.reshape(-1).cpu() for measurement in measurements])
    if threshold is not None:
        mask = cosines < threshold  # false for NaN
    else:
        order = cosines.argsort(stable=True)[:layers]  # NaN comes last
        mask = torch.zeros_like(cosines, dtype=torch.bool).index_fill(0, order, True) & ~cosines.isnan()
    if unmoved == "remove":
        mask |= cosines.isnan() & torch.cat([measurement.updated.reshape(-1).cpu() for measurement in measurements])
    sizes = [measurement.cosine.numel() for measurement in measurements]
    parts = zip(torch.split(mask, sizes), measurements, strict=True)
    return [part.reshape(measurement.cosine.shape).to(measurement.cosine.device) for part, measurement in parts]


def _rows(update: LowRankUpdate, measurement: Measurement, selected: Tensor) -> list[MatrixProjection]:
    names = [update.name] if selected.ndim == 0 else [f"{update.name}[{expert}]" for expert in range(len(selected))]
    columns = (tensor.reshape(-1).tolist() for tensor in (measurement.cosine, selected, measurement.ratio))
    return [
        MatrixProjection(name, None if math.isnan(cosine) else cosine, is_projected, ratio if is_projected else 1.0)
        for name, cosine, is_projected, ratio in zip(names, *columns, strict=True)
    ]


def _updates(model: nn.Module, anchor: Anchor | None) -> list[LowRankUpdate]:
    updates = adapter_updates(model)
    if not updates:
        raise ConfigError("there is no adapter to project", expected="a model with a LoRA adapter of PEFT")
    merged = next((update.name for update in updates if update.merged), None)
    if merged is not None:
        raise ConfigError(
            "the adapter is merged into the weights and cannot be projected",
            got=f"{merged} merged",
            remedy="load the adapter again, or call unmerge_adapter()",
        )
    for update in updates:
        if not all(bool(factor.isfinite().all()) for factor in update.factors()):
            raise ConfigError(
                f"the adapter of {update.name} is not finite",
                expected="finite factors",
                remedy="train it again, with a lower learning rate",
            )
    return updates if anchor is None else penalised(anchor, updates)


def _require_one(threshold: float | None, layers: int | None) -> None:
    if (threshold is None) == (layers is None):
        raise ConfigError(
            "Safe LoRA needs a threshold or a number of layers",
            got="neither" if threshold is None else "both",
            expected="exactly one of the two",
        )
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise ConfigError("the threshold of Safe LoRA must be a cosine, in [-1, 1]", got=threshold)
    if layers is not None and layers < 0:
        raise ConfigError("the number of layers to project must be 0 or more", got=layers)
