"""What a cut costs: loss on reference answers and refusals of three kinds of requests, dense against cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.evaluation import Difference, Rate
from seawall.config.data import BuiltinSource, JsonlSource, SourceConfig
from seawall.data.prompts import Benign, Borderline, Goal, Gold
from seawall.data.sources import load_benign, load_borderline, load_goals, load_gold
from seawall.data.splits import split, take
from seawall.data.types import Outcome, outcome, user
from seawall.evaluation.gold import GoldLoss, gold_answer_loss
from seawall.evaluation.judges.keyword import RULES, KeywordJudge
from seawall.evaluation.metrics import Increase, paired_difference, rate_with_interval, relative_increase
from seawall.models.generate import generate

KINDS = ("harmful", "borderline", "benign")
_LOADERS: Mapping[str, Callable[[SourceConfig], Sequence[Goal | Borderline | Benign]]] = {
    "harmful": load_goals,
    "borderline": load_borderline,
    "benign": load_benign,
}
_BATCH = 16


@dataclass(frozen=True)
class CostPrompts:
    """The prompts that a cut is measured on.

    Attributes:
        requests: texts of each kind of `KINDS`.
        gold: questions with reference answers.
        files: file of each kind and of `gold` that is not built in.
    """

    requests: dict[str, tuple[str, ...]]
    gold: tuple[Gold, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """One model on `CostPrompts`: loss on the reference answers, and the outcome of every request by kind."""

    gold: GoldLoss
    outcomes: dict[str, tuple[Outcome, ...]]


@dataclass(frozen=True)
class Refusals:
    """Refusal rates on the same requests: dense, cut, and the paired change."""

    dense: Rate
    cut: Rate
    change: Difference


@dataclass(frozen=True)
class Costs:
    """What a cut costs.

    Attributes:
        dense_loss, cut_loss: nats per token of the reference answers.
        increase: relative increase of the loss, with its interval.
        refusals: by kind of request.
    """

    dense_loss: float
    cut_loss: float
    increase: Increase
    refusals: dict[str, Refusals]

    def document(self) -> dict[str, Any]:
        """The costs as JSON."""
        loss = {"dense": self.dense_loss, "cut": self.cut_loss, "relative_increase": asdict(self.increase)}
        return {"loss": loss, "refusals": {kind: asdict(rates) for kind, rates in self.refusals.items()}}


def read_prompts(files: Mapping[str, str], count: int) -> CostPrompts:
    """At most `count` requests of each kind and reference answers: all rows of a file, or the built-in test prompts.

    Args:
        files: a JSONL file by kind of `KINDS`, or by `gold`; prompts of a kind without a file are built in.
        count: maximum number of each.

    Raises:
        DataError: a file cannot be read or holds no prompts.
    """
    requests = {}
    for kind in KINDS:
        rows = _LOADERS[kind](_source(files.get(kind)))
        chosen = take(rows if kind in files else split(rows).test, count)
        requests[kind] = tuple(row.text for row in chosen)
    return CostPrompts(requests, take(load_gold(_source(files.get("gold"))), count), dict(files))


def _source(path: str | None) -> SourceConfig:
    return BuiltinSource() if path is None else JsonlSource(path=path)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: CostPrompts, *, max_new_tokens: int
) -> Measurement:
    """Loss and judged replies of one model.

    Args:
        model: in any mode; left unchanged.
        tokenizer: of the model.
        prompts: the prompts.
        max_new_tokens: maximum length of a reply, in tokens.

    Raises:
        DataError: the chat template refuses a prompt.
    """
    gold = gold_answer_loss(model, tokenizer, prompts.gold, batch_size=_BATCH)
    outcomes = {}
    for kind, requests in prompts.requests.items():
        messages = [user(request) for request in requests]
        replies = generate(model, tokenizer, messages, max_new_tokens=max_new_tokens, batch_size=_BATCH)
        verdicts = KeywordJudge()(messages, [reply.answer for reply in replies])
        pairs = zip(replies, verdicts, strict=True)
        outcomes[kind] = tuple(
            "unscored" if reply.unscored else outcome(verdict.label, verdict.reason) for reply, verdict in pairs
        )
    return Measurement(gold, outcomes)


def costs(dense: Measurement, cut: Measurement, prompts: CostPrompts) -> Costs:
    """The costs, from the measurements of both models on the same prompts."""
    losses = [[answer.nats for answer in side.gold.answers] for side in (dense, cut)]
    refusals = {}
    for kind, requests in prompts.requests.items():
        before, after = dense.outcomes[kind], cut.outcomes[kind]
        refusals[kind] = Refusals(
            rate_with_interval(before, requests, "refused"),
            rate_with_interval(after, requests, "refused"),
            paired_difference(before, after, requests, target="refused"),
        )
    return Costs(dense.gold.loss, cut.gold.loss, relative_increase(*losses), refusals)


def judge_version() -> str:
    """The judge of the refusals, for the record."""
    return f"keyword, rules {RULES}"
