"""The record of a graft: the gene, the task's model, the coefficient of every layer, and the files for its removal.

Baselines leave the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from seawall.artifacts.evaluation import SparseNumber
from seawall.artifacts.store import load_record, require, save_record
from seawall.config.gene import PROJECTING, GraftMethod
from seawall.disk import what_lacks
from seawall.errors import ArtifactError

NAME = "seawall_graft.json"
"""In the folder of a grafted checkpoint or adapter; a model with this file is not grafted again."""
ADAPTER, ORIGINALS = "graft/adapter", "graft/originals"
"""In a grafted checkpoint's folder: the graft as an adapter, and the original values of the changed tensors."""
_KIND = "graft"

GraftForm = Literal["adapter", "merged"]
"""An adapter of the task's model, or a checkpoint with the update merged into its weights."""
CoefficientKind = Literal["layer", "global", "fixed"]
"""One coefficient per layer, one for all layers, or 1 without tuning."""


def _pairs(coefficients: Mapping[int, float]) -> list[tuple[int, float]]:
    return sorted(coefficients.items())


def _from_pairs(value: object) -> object:
    """The pairs of a file as a mapping; a layer with two coefficients is refused."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return value
    coefficients = {layer: factor for layer, factor in value if isinstance(layer, int)}
    if len(coefficients) != len(value):
        raise ValueError("layers are integers, each with one coefficient")
    return coefficients


Coefficients = Annotated[Mapping[int, float], BeforeValidator(_from_pairs), PlainSerializer(_pairs)]
"""Decoder layer -> factor of its update; in the JSON a list of pairs, ascending by layer, as files of 0.1.0 have it."""


@dataclass(frozen=True, slots=True)
class GraftStep:
    """Mean cross-entropies before an update, in nats per token.

    Attributes:
        step: number of the update.
        refusal_loss: of refusals.
        task_loss: of the task's examples.
        harmless_loss: of replies to harmless requests; None without any.
    """

    step: int
    refusal_loss: float
    task_loss: float
    harmless_loss: float | None = None


@dataclass(frozen=True, slots=True)
class GraftCheck:
    """Logits of adapter and merged checkpoint (or adapter and model in memory) after reloading.

    Attributes:
        prompts: number of prompts.
        max_logit_difference: largest difference of any logit.
        largest_logit: for scale.
        effect_error: distance of the two sides' logits, as a share of what the graft changes in the task model's; None
            in files of earlier versions.
        survival: share of the update in the stored weights, along itself; None for an adapter, which rounds nothing,
            and in files of earlier versions.
    """

    prompts: int
    max_logit_difference: float
    largest_logit: float
    effect_error: SparseNumber = None
    survival: SparseNumber = None

    @property
    def share(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.max_logit_difference / max(self.largest_logit, 1e-9)


@dataclass(frozen=True, slots=True)
class GraftLimit:
    """The strength of a graft by a limit on over-refusal.

    Attributes:
        allowed: share of borderline requests that may be refused.
        factor: of all coefficients, which include it.
        refused: share of the requests that the grafted model refused, or answered with what cannot be judged.
        requests: number of borderline requests.
    """

    allowed: float
    factor: float
    refused: float
    requests: int


@dataclass(frozen=True, eq=False)
class Graft:
    """One graft.

    Attributes:
        task_model: fingerprint of the task model's weights; with `safelora` and `safemerge`, of the adapter's base.
        task_id: name of the task's model.
        gene: fingerprint of the gene; with `safety_sft`, of the gene whose points and rank it has; None with
            `safelora`.
        gene_made: origin of the gene in words.
        form: adapter or merged checkpoint.
        coefficients: decoder layer -> factor of its update; empty with `safelora` and `safemerge`.
        tuned: number of tuned coefficients.
        shots: number of refusals, and of examples of the task.
        steps: losses during tuning.
        result: fingerprint of the merged checkpoint; None for an adapter.
        originals: file with original tensors -> its hash; None if originals are not stored.
        check: None if left out.
        seconds: of the graft.
        method: `gene`, or a baseline; files from before there were baselines are of a gene.
        anchor: hash of the anchor's JSON, with `safelora` and `safemerge`; None where the base model was read.
        note: remark for people.
        harmless: number of replies to harmless requests in tuning, empty ones excluded.
        limit: None without a limit on over-refusal.
    """

    task_model: str
    task_id: str
    gene: str | None
    gene_made: str | None
    form: GraftForm
    coefficients: Coefficients
    tuned: CoefficientKind
    shots: int
    steps: tuple[GraftStep, ...] = ()
    result: str | None = None
    originals: Mapping[str, str] | None = None
    check: GraftCheck | None = None
    seconds: float = 0.0
    method: GraftMethod = "gene"
    anchor: str | None = None
    note: str = ""
    harmless: int = 0
    limit: Annotated[GraftLimit | None, Field(exclude_if=lambda limit: limit is None)] = None

    def save(self, folder: Path) -> None:
        """Write `seawall_graft.json`."""
        save_record(folder / NAME, _KIND, self)

    @classmethod
    def load(cls, folder: Path) -> Graft:
        """Read `seawall_graft.json`.

        Raises:
            ArtifactError: the file is missing or damaged, or parts contradict each other.
        """
        path = folder / NAME
        if not path.is_file():
            got = what_lacks(folder, NAME)
            raise ArtifactError(f"{folder} is no graft", got=got, remedy="name the output of `seawall gene graft`")
        # Grafts from before there were baselines lack the first four; those without a limit the last.
        graft = load_record(path, _KIND, cls, later=("method", "anchor", "note", "harmless", "limit"))
        complete = bool(graft.coefficients) != (graft.method in PROJECTING)
        require(complete, path, "one coefficient per layer, and none where the task's adapter was changed")
        require((graft.gene is None) == (graft.method == "safelora"), path, "a gene unless an adapter was projected")
        return graft

    def document(self) -> dict[str, object]:
        """The graft as JSON for machines."""
        return {**asdict(self), "coefficients": {str(layer): value for layer, value in self.coefficients.items()}}
