"""What a graft did: which gene went onto which model, how much of it in every layer, and how to take it off again.

What a baseline did in a gene's place is written down in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document
from seawall.config.gene import GraftMethod
from seawall.errors import ArtifactError

NAME = "seawall_graft.json"
"""Lies in the folder of a grafted checkpoint or adapter; a model that has it is not grafted once more."""
ADAPTER, ORIGINALS = "graft/adapter", "graft/originals"
"""In a grafted checkpoint's folder: the same graft as an adapter, and the changed tensors as they were."""
_KIND = "graft"

GraftForm = Literal["adapter", "merged"]
"""An adapter of the task's model, or a checkpoint with the update in its weights."""
CoefficientKind = Literal["layer", "global", "fixed"]
"""A coefficient of its own for every layer, one for all, or 1 without tuning."""


@dataclass(frozen=True, slots=True)
class GraftStep:
    """Mean cross-entropies before an update, in nats per token: of refusals, of the task's examples, and of the replies
    to harmless requests that are to stay, where there are any.
    """

    step: int
    refusal_loss: float
    task_loss: float
    harmless_loss: float | None = None


@dataclass(frozen=True, slots=True)
class GraftCheck:
    """Adapter and merged checkpoint (or adapter and model in memory) against each other, loaded anew.

    Attributes:
        prompts: how many were read.
        max_logit_difference: the largest.
        largest_logit: for scale.
    """

    prompts: int
    max_logit_difference: float
    largest_logit: float

    @property
    def share(self) -> float:
        """The difference as a share of the largest logit."""
        return self.max_logit_difference / max(self.largest_logit, 1e-9)


@dataclass(frozen=True, eq=False)
class Graft:
    """One graft.

    Attributes:
        task_model: fingerprint of the weights that it is on; with `safelora`, of the base of the task's adapter.
        task_id: what the task's model was called.
        gene: fingerprint of the gene, with `safety_sft` of the one whose points and rank were taken; None with
            `safelora`.
        gene_made: how that was made.
        form: adapter or merged checkpoint.
        coefficients: decoder layer -> what its update is multiplied with; empty with `safelora`.
        tuned: how they came about.
        shots: refusals, and as many examples of the task.
        steps: while they were tuned.
        result: fingerprint of the merged checkpoint; None for an adapter.
        originals: hash of each file that holds the changed tensors as they were, by its name; empty where none is kept.
        check: None where it was left out.
        seconds: all of it took.
        method: a gene, or which baseline; files from before there were baselines are of a gene.
        anchor: hash of the anchor's document, with `safelora`.
        note: what else is to be said, for people.
        harmless: how many replies to harmless requests were among what was tuned on; empty ones are not.
    """

    task_model: str
    task_id: str
    gene: str | None
    gene_made: str | None
    form: GraftForm
    coefficients: Mapping[int, float]
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

    def save(self, folder: Path) -> None:
        """Write `seawall_graft.json`."""
        known = {name: getattr(self, name) for name in _Fields.model_fields if name != "coefficients"}
        written = _Fields(**known, coefficients=tuple(sorted(self.coefficients.items())))
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> Graft:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = folder / NAME
        if not path.is_file():
            got = f"no {NAME} in it" if folder.is_dir() else "no such folder"
            raise ArtifactError(f"{folder} is no graft", got=got, remedy="name what `seawall gene graft` left")
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        coefficients = dict(read.coefficients)
        complete = bool(coefficients) != (read.method == "safelora") and len(coefficients) == len(read.coefficients)
        require(complete, path, "one coefficient per layer, and none where an adapter was projected")
        require((read.gene is None) == (read.method == "safelora"), path, "a gene unless an adapter was projected")
        known = {name: getattr(read, name) for name in _Fields.model_fields if name != "coefficients"}
        return cls(**known, coefficients=coefficients)

    def document(self) -> dict[str, object]:
        """For machines."""
        return {**asdict(self), "coefficients": {str(layer): one for layer, one in self.coefficients.items()}}


class _Fields(Fields):
    task_model: str
    task_id: str
    gene: str | None
    gene_made: str | None
    form: GraftForm
    coefficients: tuple[tuple[int, float], ...]
    tuned: CoefficientKind
    shots: int
    steps: tuple[GraftStep, ...]
    result: str | None
    originals: dict[str, str] | None
    check: GraftCheck | None
    seconds: float
    method: GraftMethod = "gene"
    anchor: str | None = None
    note: str = ""
    harmless: int = 0
