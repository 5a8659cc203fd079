"""A gene: the safety of one architecture family as a LoRA adapter, after SafeGene (arXiv 2606.06519).

On disk it is an adapter of PEFT (`adapter_config.json`, `adapter_model.safetensors`), which PEFT loads like any other,
and `gene.json` beside it: whose safety it is, where it belongs, and what was measured while it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import (
    Fields,
    load_document,
    load_tensors,
    parse_fields,
    require,
    save_document,
    save_tensors,
    tensors_fingerprint,
)
from seawall.errors import ArtifactError
from seawall.runs.files import canonical_hash, write_json

NAME = "gene.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KIND = "gene"
_PREFIX = "base_model.model."


class Factors(NamedTuple):
    """The factors of a low-rank update `B A`: B (..., rows, r) and A (..., r, columns); `...` is E of a stack."""

    B: Tensor
    A: Tensor

    def product(self) -> Tensor:
        """The update (..., rows, columns)."""
        return self.B @ self.A


@dataclass(frozen=True, slots=True)
class GenePoint:
    """A weight matrix, or a stack of experts' matrices, that an adapter changes.

    Attributes:
        layer: decoder layer.
        shape: of the update, (rows, columns) or (E, rows, columns), whichever way the model stores it.
        transposed: whether the model stores (..., columns, rows).
        module: where PEFT keeps the factors.
        by_parameter: PEFT names it in `target_parameters`, not in `target_modules`.
    """

    layer: int
    shape: tuple[int, ...]
    transposed: bool
    module: str
    by_parameter: bool

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the parameter in the model."""
        *stack, rows, columns = self.shape
        return (*stack, columns, rows) if self.transposed else (*stack, rows, columns)


@dataclass(frozen=True, slots=True)
class GeneLayer:
    """How much more the aligned and the degraded model differ on harmful prompts than on harmless ones, in one layer.

    Differences are means of ||difference|| / ||h(aligned)|| at the layer's output h, where a reply's first tokens are
    predicted.

    Attributes:
        layer: decoder layer.
        harmful: of what the layer itself writes, its output less its input, on harmful prompts.
        benign: the same on harmless ones.
        stream_harmful: of the output, with all that earlier layers wrote, on harmful prompts.
        stream_benign: the same on harmless ones.
        selected: whether the gene holds the layer.
    """

    layer: int
    harmful: float
    benign: float
    stream_harmful: float
    stream_benign: float
    selected: bool

    @property
    def score(self) -> float:
        """The contrast of what the layer itself writes."""
        return self.harmful - self.benign

    @property
    def stream_score(self) -> float:
        """The contrast of its output; it grows with depth, as differences are carried on."""
        return self.stream_harmful - self.stream_benign


@dataclass(frozen=True, slots=True)
class GeneExperts:
    """How much the updates of one decoder layer's experts are used, and how large they are.

    Attributes:
        layer: decoder layer.
        harmful: mean gate weight of each expert with the gene on, at the positions where held-out replies to harmful
            requests are predicted; empty where it was not measured.
        benign: the same of harmless ones.
        norm: Frobenius norm of each expert's update, over all of the layer's stacks, before any expert was left out.
        kept: the experts whose update the gene holds, ascending; that of the others is 0.
    """

    layer: int
    harmful: tuple[float, ...]
    benign: tuple[float, ...]
    norm: tuple[float, ...]
    kept: tuple[int, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """Of each expert, gate weight on harmful requests times norm; empty where it was not measured."""
        return tuple(used * norm for used, norm in zip(self.harmful, self.norm, strict=True)) if self.harmful else ()

    @property
    def squared_norm(self) -> float:
        """Of the updates of all experts."""
        return sum(one * one for one in self.norm)

    @property
    def kept_squared_norm(self) -> float:
        """Of the updates that the gene holds."""
        return sum(self.norm[expert] ** 2 for expert in self.kept)


@dataclass(frozen=True, slots=True)
class GeneRecovery:
    """Held-out divergence, as `GeneStep` has it, with the updates of a share of each layer's experts alone.

    Attributes:
        share: of the experts.
        by: how they were chosen, `score` or `random`.
        harmful: on harmful requests, in nats per token.
        benign: on harmless ones.
    """

    share: float
    by: str
    harmful: float
    benign: float


@dataclass(frozen=True, slots=True)
class GeneStep:
    """Held-out divergence KL(aligned || degraded + gene) after so many updates, in nats per response token."""

    step: int
    harmful: float
    benign: float


@dataclass(frozen=True, eq=False)
class Gene:
    """A family's safety as low-rank updates of some weight matrices.

    Attributes:
        family: `model_type` of the configuration.
        tokenizer: hash of the vocabulary.
        aligned: fingerprint of the weights whose safety it is.
        degraded: fingerprint of the weights that it was distilled on.
        points: what it changes, by the parameter's name in the model's state dict.
        factors: of each point, in float32.
        scaling: what the products are multiplied with.
        layers: the contrast by layer, every decoder layer; empty where it was not measured.
        experts: of each layer whose stacks of experts it changes; empty where nothing is known of them.
        recovery: what some experts alone do; empty where it was not measured.
        curve: held-out divergence while it was distilled, from before the first update on.
        refusals: on held-out harmful requests that the aligned model refuses: how often the degraded one does without
            the gene (`degraded`) and with it (`restored`); empty where it was not asked.
        made: how it was made, for people.
        parents: fingerprints of the genes that it was made from.
    """

    family: str
    tokenizer: str
    aligned: str
    degraded: str
    points: Mapping[str, GenePoint]
    factors: Mapping[str, Factors]
    scaling: float
    layers: tuple[GeneLayer, ...] = ()
    curve: tuple[GeneStep, ...] = ()
    refusals: Mapping[str, Rate] = field(default_factory=dict)
    made: str = "extracted"
    parents: tuple[str, ...] = ()
    experts: tuple[GeneExperts, ...] = ()
    recovery: tuple[GeneRecovery, ...] = ()

    @property
    def rank(self) -> int:
        """r, the same at every point."""
        return next(iter(self.factors.values())).A.shape[-2]

    @property
    def held_layers(self) -> tuple[int, ...]:
        """The decoder layers that it changes, ascending."""
        return tuple(sorted({point.layer for point in self.points.values()}))

    @property
    def unchanged(self) -> frozenset[tuple[str, int]]:
        """The experts of stacks that it does not change: (name of the stack, expert)."""
        return frozenset(
            (name, expert)
            for name, point in self.points.items()
            if len(point.shape) == 3
            for expert, (B, A) in enumerate(zip(*self.factors[name], strict=True))
            if not (bool(B.any()) and bool(A.any()))
        )

    @property
    def fingerprint(self) -> str:
        """sha256 over what it does to a model: family, points, scaling and factors."""
        numbers = {f"{name}:{side}": getattr(one, side) for name, one in self.factors.items() for side in "BA"}
        said = {"family": self.family, "scaling": self.scaling, "factors": tensors_fingerprint(numbers)}
        return canonical_hash({**said, "points": {name: list(one.shape) for name, one in self.points.items()}})

    def update(self, name: str, expert: int | None = None) -> Tensor:
        """What is added to a parameter, as the model stores it; with `expert`, to one slice of a stack."""
        factors = self.factors[name]
        if expert is not None:
            factors = Factors(factors.B[expert], factors.A[expert])
        change = self.scaling * factors.product()
        return change.mT if self.points[name].transposed else change

    def save(self, folder: Path) -> None:
        """Write the adapter and `gene.json`."""
        written = _Fields(
            family=self.family,
            tokenizer=self.tokenizer,
            aligned=self.aligned,
            degraded=self.degraded,
            points=dict(self.points),
            scaling=self.scaling,
            layers=self.layers,
            curve=self.curve,
            refusals=dict(self.refusals),
            made=self.made,
            parents=self.parents,
            experts=self.experts,
            recovery=self.recovery,
            fingerprint=self.fingerprint,
            adapter=save_adapter(folder, self.points, self.factors, self.scaling),
        )
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> Gene:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or its parts do not fit each other.
        """
        path = folder / NAME
        if not path.is_file():
            got = f"no {NAME} in it" if folder.is_dir() else "no such folder"
            raise ArtifactError(f"{folder} is no gene", got=got, remedy="name what `seawall gene extract` left")
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        require(bool(read.points), path, "at least one adapter point")
        inside = all(set(one.kept) <= set(range(len(one.norm))) for one in read.experts)
        require(inside, path, "kept experts among those that it has")
        require(_describes(read.experts, read.points), path, "records of all experts in the layers that it changes")
        found = cls(
            family=read.family,
            tokenizer=read.tokenizer,
            aligned=read.aligned,
            degraded=read.degraded,
            points=read.points,
            factors=load_factors(folder, read.points, sha256=read.adapter),
            scaling=read.scaling,
            layers=read.layers,
            curve=read.curve,
            refusals=read.refusals,
            made=read.made,
            parents=read.parents,
            experts=read.experts,
            recovery=read.recovery,
        )
        require(found.fingerprint == read.fingerprint, path, "the factors that its fingerprint is of")
        return found


def _describes(experts: Sequence[GeneExperts], points: Mapping[str, GenePoint]) -> bool:
    """Whether there are no records, or one for each layer with stacks, of as many experts."""
    stacks = {(point.layer, point.shape[0]) for point in points.values() if len(point.shape) == 3}
    sizes = all(len(side) in (0, len(one.norm)) for one in experts for side in (one.harmful, one.benign))
    return not experts or (sizes and sorted((one.layer, len(one.norm)) for one in experts) == sorted(stacks))


def save_adapter(folder: Path, points: Mapping[str, GenePoint], factors: Mapping[str, Factors], scaling: float) -> str:
    """Write an adapter that PEFT loads; returns the hash of its weights' file."""
    rank = next(iter(factors.values())).A.shape[-2]
    tensors: dict[str, Tensor] = {}
    for name, point in points.items():
        B, A = factors[name]
        if len(point.shape) == 3:  # PEFT keeps A as (experts, r) x columns and B as rows x (r, experts)
            A, B = A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)
        for side, tensor in (("lora_A", A), ("lora_B", B)):
            tensors[f"{_PREFIX}{point.module}.{side}.weight"] = tensor.float()
    digest = save_tensors(folder / ADAPTER_WEIGHTS, tensors)["sha256"]
    write_json(folder / ADAPTER_CONFIG, adapter_config(points, rank=rank, scaling=scaling))
    return digest


def adapter_config(points: Mapping[str, GenePoint], *, rank: int, scaling: float) -> dict[str, Any]:
    """PEFT's settings for a LoRA adapter of exactly these points, dropout and biases off."""
    alpha = scaling * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [name.removesuffix(".weight") for name, one in points.items() if not one.by_parameter],
        "target_parameters": [name for name, one in points.items() if one.by_parameter],
    }


def load_factors(folder: Path, points: Mapping[str, GenePoint], *, sha256: str) -> dict[str, Factors]:
    """The factors that `save_adapter` wrote.

    Raises:
        ArtifactError: the file is missing, changed, or has other tensors.
    """
    path = folder / ADAPTER_WEIGHTS
    tensors = load_tensors(path, sha256=sha256)
    keys = {f"{_PREFIX}{one.module}.{side}.weight" for one in points.values() for side in ("lora_A", "lora_B")}
    require(set(tensors) == keys, path, "two factors of every adapter point")
    require(all(bool(one.isfinite().all()) for one in tensors.values()), path, "finite numbers")
    found = {}
    for name, point in points.items():
        A, B = (tensors[f"{_PREFIX}{point.module}.{side}.weight"] for side in ("lora_A", "lora_B"))
        found[name] = unstacked(B, A, point.shape)
        *stack, rows, columns = point.shape
        rank = found[name].A.shape[-2]
        fits = found[name].B.shape == (*stack, rows, rank) and found[name].A.shape == (*stack, rank, columns)
        require(fits, path, f"factors of an update {point.shape} at {name}")
    require(len({one.A.shape[-2] for one in found.values()}) == 1, path, "one rank")
    return found


def unstacked(B: Tensor, A: Tensor, shape: tuple[int, ...]) -> Factors:
    """Factors as (..., rows, r) and (..., r, columns) from PEFT's, which lay out a stack in two dimensions."""
    if len(shape) == 2:
        return Factors(B, A)
    experts, rows, columns = shape
    return Factors(B.reshape(rows, -1, experts).permute(2, 0, 1), A.reshape(experts, -1, columns))


def zero_factors(point: GenePoint, rank: int) -> Factors:
    """The update that changes nothing."""
    *stack, rows, columns = point.shape
    return Factors(torch.zeros(*stack, rows, rank), torch.zeros(*stack, rank, columns))


class _Fields(Fields):
    family: str
    tokenizer: str
    aligned: str
    degraded: str
    points: dict[str, GenePoint]
    scaling: float
    layers: tuple[GeneLayer, ...]
    curve: tuple[GeneStep, ...]
    refusals: dict[str, Rate]
    made: str
    parents: tuple[str, ...]
    # what genes of before experts were scored do not have
    experts: tuple[GeneExperts, ...] = ()
    recovery: tuple[GeneRecovery, ...] = ()
    fingerprint: str
    adapter: str
