"""What a graft did: which gene went onto which model, how much of it in every layer, and how to take it off again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document
from seawall.errors import ArtifactError

NAME = "seawall_graft.json"
"""Lies in the folder of a grafted checkpoint or adapter; a model that has it is not grafted once more."""
_KIND = "graft"

GraftForm = Literal["adapter", "merged"]
"""An adapter of the task's model, or a checkpoint with the gene in its weights."""
CoefficientKind = Literal["layer", "global", "fixed"]
"""A coefficient of its own for every layer, one for all, or 1 without tuning."""


@dataclass(frozen=True, slots=True)
class GraftStep:
    """Mean cross-entropies before an update, in nats per token: of refusals and of the task's examples."""

    step: int
    refusal_loss: float
    task_loss: float


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
        task_model: fingerprint of the weights that it is on.
        task_id: what they were called.
        gene: fingerprint of the gene.
        gene_made: how that was made.
        form: adapter or merged checkpoint.
        coefficients: decoder layer -> what the gene's update is multiplied with.
        tuned: how they came about.
        shots: refusals, and as many examples of the task.
        steps: while they were tuned.
        result: fingerprint of the merged checkpoint; None for an adapter.
        originals: hash of each file that holds the changed tensors as they were, by its name; empty where none is kept.
        check: None where it was left out.
        seconds: all of it took.
    """

    task_model: str
    task_id: str
    gene: str
    gene_made: str
    form: GraftForm
    coefficients: Mapping[int, float]
    tuned: CoefficientKind
    shots: int
    steps: tuple[GraftStep, ...] = ()
    result: str | None = None
    originals: Mapping[str, str] | None = None
    check: GraftCheck | None = None
    seconds: float = 0.0

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
        require(bool(coefficients) and len(coefficients) == len(read.coefficients), path, "one coefficient per layer")
        known = {name: getattr(read, name) for name in _Fields.model_fields if name != "coefficients"}
        return cls(**known, coefficients=coefficients)

    def document(self) -> dict[str, object]:
        """For machines."""
        return {**asdict(self), "coefficients": {str(layer): one for layer, one in self.coefficients.items()}}


class _Fields(Fields):
    task_model: str
    task_id: str
    gene: str
    gene_made: str
    form: GraftForm
    coefficients: tuple[tuple[int, float], ...]
    tuned: CoefficientKind
    shots: int
    steps: tuple[GraftStep, ...]
    result: str | None
    originals: dict[str, str] | None
    check: GraftCheck | None
    seconds: float
