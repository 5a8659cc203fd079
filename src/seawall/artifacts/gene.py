"""A gene: the safety of one architecture family as a LoRA adapter, after SafeGene (arXiv 2606.06519).

On disk it is an adapter of PEFT, which PEFT loads like any other, and `gene.json` beside it: origin, adapter points and
measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from seawall.artifacts.adapter import Factors, GenePoint, load_factors, save_adapter
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import (
    load_document,
    parse_fields,
    record_document,
    require,
    save_document,
    tensors_fingerprint,
)
from seawall.disk import what_lacks
from seawall.errors import ArtifactError
from seawall.runs.files import canonical_hash

NAME = "gene.json"
_KIND = "gene"


@dataclass(frozen=True, slots=True)
class GeneLayer:
    """Differences between the aligned and the degraded model in one decoder layer.

    A difference is the mean of ||difference|| / ||h(aligned)|| at the layer's output h, where the first tokens of
    replies are predicted.

    Attributes:
        layer: decoder layer.
        harmful: difference of the layer's own contribution (output less input), on harmful prompts.
        benign: the same on harmless prompts.
        stream_harmful: difference of the layer's output, earlier layers' differences included, on harmful prompts.
        stream_benign: the same on harmless prompts.
        selected: whether the gene changes the layer.
    """

    layer: int
    harmful: float
    benign: float
    stream_harmful: float
    stream_benign: float
    selected: bool

    @property
    def score(self) -> float:
        """Contrast of the layer's own contribution: harmful less harmless."""
        return self.harmful - self.benign

    @property
    def stream_score(self) -> float:
        """Contrast of the layer's output; it grows with depth, since differences add up."""
        return self.stream_harmful - self.stream_benign


@dataclass(frozen=True, slots=True)
class GeneExperts:
    """Use and size of the updates of one decoder layer's experts.

    Attributes:
        layer: decoder layer.
        harmful: mean gate weight of each expert with the gene on, at the positions where held-out replies to harmful
            requests are predicted; empty if not measured.
        benign: the same of harmless requests.
        norm: Frobenius norm of each expert's update, over all stacks of the layer, before experts were left out.
        kept: experts whose update the gene holds, ascending; the update of all others is 0.
    """

    layer: int
    harmful: tuple[float, ...]
    benign: tuple[float, ...]
    norm: tuple[float, ...]
    kept: tuple[int, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """Gate weight on harmful requests times norm, of each expert; empty if not measured."""
        return tuple(used * norm for used, norm in zip(self.harmful, self.norm, strict=True)) if self.harmful else ()

    @property
    def squared_norm(self) -> float:
        """Of the updates of all experts."""
        return sum(norm * norm for norm in self.norm)

    @property
    def kept_squared_norm(self) -> float:
        """Of the updates that the gene holds."""
        return sum(self.norm[expert] ** 2 for expert in self.kept)

    @property
    def kept_norm_share(self) -> float:
        """Share of the squared norm that the gene holds."""
        return kept_norm_share([self])

    @property
    def kept_use_share(self) -> float | None:
        """Share of the gate weight on harmful requests that goes to experts of the gene; None if not measured."""
        total = sum(self.harmful)
        return sum(self.harmful[expert] for expert in self.kept) / total if total else None

    @property
    def ranked(self) -> tuple[int, ...]:
        """The experts of the gene by score, or by norm where there are no scores, best first."""
        scores = self.scores or self.norm
        return tuple(sorted(self.kept, key=lambda expert: (-scores[expert], expert)))


def kept_norm_share(layers: Sequence[GeneExperts]) -> float:
    """Share of the squared norm of the experts' updates that the gene holds, over several layers."""
    total = sum(layer.squared_norm for layer in layers)
    return sum(layer.kept_squared_norm for layer in layers) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class GeneRecovery:
    """Held-out divergence, as in `GeneStep`, with the updates of a share of each layer's experts alone.

    Attributes:
        share: of the experts.
        by: choice of the experts, `score` or `random`.
        harmful: on harmful requests, in nats per token.
        benign: on harmless requests.
    """

    share: float
    by: str
    harmful: float
    benign: float


@dataclass(frozen=True, slots=True)
class GeneStep:
    """Held-out divergence KL(aligned || degraded + gene) after `step` updates, in nats per response token."""

    step: int
    harmful: float
    benign: float


@dataclass(frozen=True, eq=False)
class Gene:
    """A family's safety as low-rank updates of some weight matrices.

    Attributes:
        family: `model_type` of the configuration.
        tokenizer: hash of the vocabulary.
        aligned: fingerprint of the aligned weights.
        degraded: fingerprint of the degraded weights, on which the gene was distilled.
        points: changed parameters, by name in the model's state dict.
        factors: of each point, in float32.
        scaling: factor of the products.
        layers: contrast of every decoder layer; empty if not measured.
        experts: of each layer with changed stacks of experts; empty if nothing is known about them.
        recovery: divergence with some experts alone; empty if not measured.
        curve: held-out divergence during distillation, from before the first update on.
        refusals: on held-out harmful requests that the aligned model refuses: refusal rate of the degraded model
            without (`degraded`) and with the gene (`restored`), left out if not measured; with borderline requests in
            the extraction also that of the aligned model on others (`aligned`).
        made: origin in words.
        parents: fingerprints of the genes it was derived from.
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
        """The changed decoder layers, ascending."""
        return tuple(sorted({point.layer for point in self.points.values()}))

    @property
    def unchanged(self) -> frozenset[tuple[str, int]]:
        """The experts of stacks whose update is 0: (name of the stack, expert)."""
        return frozenset(
            (name, expert)
            for name, point in self.points.items()
            if len(point.shape) == 3
            for expert, (B, A) in enumerate(zip(*self.factors[name], strict=True))
            if not (bool(B.any()) and bool(A.any()))
        )

    @property
    def fingerprint(self) -> str:
        """sha256 over the change of a model: family, points, scaling and factors."""
        numbers = {f"{name}:{side}": getattr(pair, side) for name, pair in self.factors.items() for side in "BA"}
        return canonical_hash(
            {
                "family": self.family,
                "scaling": self.scaling,
                "factors": tensors_fingerprint(numbers),
                "points": {name: list(point.shape) for name, point in self.points.items()},
            }
        )

    def update(self, name: str, expert: int | None = None) -> Tensor:
        """The summand of a parameter, in the model's orientation; with `expert`, that of one slice of a stack."""
        factors = self.factors[name]
        if expert is not None:
            factors = Factors(factors.B[expert], factors.A[expert])
        change = self.scaling * factors.product()
        return change.mT if self.points[name].transposed else change

    def save(self, folder: Path) -> None:
        """Write the adapter and `gene.json`."""
        adapter = save_adapter(folder, self.points, self.factors, self.scaling)
        document = {**record_document(self), "fingerprint": self.fingerprint, "adapter": adapter}
        save_document(folder / NAME, _KIND, document)

    @classmethod
    def load(cls, folder: Path) -> Gene:
        """Read the adapter and `gene.json`.

        Raises:
            ArtifactError: a file is missing or damaged, or parts contradict each other.
        """
        path = folder / NAME
        if not path.is_file():
            got = what_lacks(folder, NAME)
            raise ArtifactError(f"{folder} is no gene", got=got, remedy="name the output of `seawall gene extract`")
        document = load_document(path, _KIND)
        fingerprint, adapter = (document.pop(key, None) for key in ("fingerprint", "adapter"))
        # Genes from before experts were scored lack these two.
        parsed = parse_fields(path, document, cls, later=("experts", "recovery"))
        points, experts = parsed["points"], parsed.get("experts", ())
        require(bool(points), path, "at least one adapter point")
        valid = all(set(layer.kept) <= set(range(len(layer.norm))) for layer in experts)
        require(valid, path, "kept experts among those that it has")
        require(_describes(experts, points), path, "records of all experts in the layers that it changes")
        gene = cls(**parsed, factors=load_factors(folder, points, sha256=str(adapter)))
        require(gene.fingerprint == fingerprint, path, "the factors that its fingerprint is of")
        return gene


def _describes(experts: Sequence[GeneExperts], points: Mapping[str, GenePoint]) -> bool:
    """Whether there are no records, or one for each layer with stacks, each of all experts of the stack."""
    stacks = {(point.layer, point.shape[0]) for point in points.values() if len(point.shape) == 3}
    sizes = all(len(side) in (0, len(layer.norm)) for layer in experts for side in (layer.harmful, layer.benign))
    return not experts or (sizes and sorted((layer.layer, len(layer.norm)) for layer in experts) == sorted(stacks))
