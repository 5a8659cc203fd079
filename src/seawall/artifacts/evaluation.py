"""What an evaluation found: rates with intervals, and every sample behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from seawall.artifacts.store import read_json, write_json
from seawall.data.types import Messages, VerdictLabel

NAME = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate over scored replies with its 95 % interval; of `n` replies, `unscored` count neither way."""

    rate: float
    low: float
    high: float
    n: int
    unscored: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, the reply, and the judge's verdict."""

    id: str
    goal: str
    group: str
    prompt: Messages
    response: str
    label: VerdictLabel
    reason: str


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Rates by group ("plain", "attack:FAMILY", "borderline", "benign") and the loss on gold answers (nats a token)."""

    model_fingerprint: str
    groups: Mapping[str, Rate]
    gold_loss: float | None
    gold_n: int
    samples: str

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json`."""
        write_json(folder / NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> EvalResult:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        document = read_json(folder / NAME)
        groups = {name: Rate(**rate) for name, rate in document["groups"].items()}
        return cls(**{**document, "groups": groups})
