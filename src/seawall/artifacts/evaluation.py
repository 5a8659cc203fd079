"""What an evaluation found: rates with intervals, and every sample behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from seawall.artifacts.store import Fields, load_document, parse_fields, save_document
from seawall.data.types import Messages, VerdictLabel

NAME = "evaluation.json"
_KIND = "evaluation"


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate over scored replies, or a difference of two, with its 95 % interval, as fractions.

    Of `n` replies, `unscored` count neither way.
    """

    rate: float
    low: float
    high: float
    n: int
    unscored: int = 0

    @property
    def scored(self) -> int:
        """Replies that the rate speaks of."""
        return self.n - self.unscored

    @property
    def is_clear(self) -> bool:
        """Of a difference: whether its interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A reply as it is after its first `length` tokens, and the judge's verdict on that."""

    length: int
    response: str
    label: VerdictLabel
    reason: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, the reply, and the judge's verdict.

    Attributes:
        id: of the prompt.
        goal: what intervals are clustered by.
        group: what is measured.
        prompt: the conversation.
        response: the reply.
        label: the verdict.
        reason: why.
        cuts: verdicts on the reply as it is at other lengths.
        harm: how much harm it does, in [0, 1], where the judge says so.
        disputed: whether several judges differ; None for one judge.
    """

    id: str
    goal: str
    group: str
    prompt: Messages
    response: str
    label: VerdictLabel
    reason: str
    cuts: tuple[Cut, ...] = ()
    harm: float | None = None
    disputed: bool | None = None


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """What one reference answer cost: `nats` over all of its `tokens`. `id` is the question's."""

    id: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class CapabilityScore:
    """What one metric of one task found, question by question, so that two models can be paired.

    Attributes:
        task: a task, group of tasks or local file of the recipe.
        metric: `acc`, or `exact_match,last-number` where the harness has several ways to read a reply.
        higher_is_better: else lower.
        score: mean of `values`.
        stderr: standard error of that mean.
        ids: of the questions.
        values: what each counted, in [0, 1].
    """

    task: str
    metric: str
    higher_is_better: bool
    score: float
    stderr: float
    ids: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many questions."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Rates by group, the loss on gold answers, and scores of capability.

    Attributes:
        model_fingerprint: of the evaluated model; of one behind an endpoint, the address and the served name.
        groups: "plain", "attack:FAMILY", "borderline", "benign" or "wrapped" -> its rate.
        gold_loss: mean nats per answer token; None where it was not measured.
        gold_n: gold questions.
        samples: name of the samples' file, beside this one.
        gold: what each reference answer cost, in the order of the questions; empty where it was not measured, and in
            evaluations of before this was kept.
        lengths: group -> the rate after so many tokens of each reply, by that number; empty unless it was asked for.
        capability: every metric of every task; empty where it was not measured.
        disagreement: share of replies on which several judges differ, of those that two or more scored; None for one.
    """

    model_fingerprint: str
    groups: Mapping[str, Rate]
    gold_loss: float | None
    gold_n: int
    samples: str
    gold: tuple[GoldAnswer, ...] = ()
    lengths: Mapping[str, Mapping[int, Rate]] = field(default_factory=dict)
    capability: tuple[CapabilityScore, ...] = ()
    disagreement: float | None = None

    def save(self, folder: Path) -> None:
        """Write `evaluation.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            groups=dict(self.groups),
            gold_loss=self.gold_loss,
            gold_n=self.gold_n,
            samples=self.samples,
            gold=self.gold,
            lengths={group: {str(at): rate for at, rate in rates.items()} for group, rates in self.lengths.items()},
            capability=self.capability,
            disagreement=self.disagreement,
        )
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> EvalResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = folder / NAME
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        return cls(
            model_fingerprint=read.model_fingerprint,
            groups=read.groups,
            gold_loss=read.gold_loss,
            gold_n=read.gold_n,
            samples=read.samples,
            gold=read.gold,
            lengths={group: {int(at): rate for at, rate in rates.items()} for group, rates in read.lengths.items()},
            capability=read.capability,
            disagreement=read.disagreement,
        )


class _Fields(Fields):
    model_fingerprint: str
    groups: dict[str, Rate]
    gold_loss: float | None
    gold_n: int
    samples: str
    gold: tuple[GoldAnswer, ...] = ()
    lengths: dict[str, dict[str, Rate]] = Field(default_factory=dict)
    capability: tuple[CapabilityScore, ...] = ()
    disagreement: float | None = None
