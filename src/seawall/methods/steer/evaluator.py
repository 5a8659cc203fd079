"""Scores of candidates on validation prompts, with many candidates as rows of one forward pass.

Legend: B prompts of a batch, R modified copies of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from math import isfinite
from statistics import fmean
from typing import Literal, final

import torch

from seawall.artifacts.directions import Directions, PromptSide
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.methods.steer.extract import prompts_of_side, require_prompts
from seawall.methods.steer.interventions import (
    EVALUATORS,
    CandidatePass,
    Recorded,
    ablated_in,
    additions_in_rows,
    computed,
    record,
    unchanged,
)
from seawall.methods.steer.score import refusal_score
from seawall.methods.steer.target import Prompt, TargetModel, measured
from seawall.models.everywhere import Change
from seawall.models.hidden.enter_at_layer import can_enter_at_layer
from seawall.models.replicas import holders, shared_results

Metric = Literal["score", "kl", "induced"]
"""`score`: refusal score of a prompt whose refusal is to be moved. `kl`: divergence of a harmless prompt's next token
from the original model's, in nats. `induced`: refusal score of a harmless prompt with the direction added. For `score`
and `kl` a direction of the family `layer` is ablated everywhere, all others are subtracted or added in their place."""
PromptSet = Literal["moved", "harmless"]
Subset = Literal["screening", "remaining"]
"""The first prompts of a side, on which candidates are screened, and the remaining ones."""
SUBSETS: tuple[Subset, ...] = ("screening", "remaining")
PROMPTS_OF: dict[Metric, PromptSet] = {"score": "moved", "kl": "harmless", "induced": "harmless"}
SCREENING = 8
"""Number of screening prompts per side."""
_PASSES_AT_ONCE = 8
"""Number of passes, by process, whose vectors are in memory together."""
METRIC_NAMES: dict[Metric, str] = {
    "score": "refusal scores",
    "kl": "harmless divergence",
    "induced": "induced refusal",
}
Progress = Callable[[str, int, int], None]
"""(what is measured, count, total) -> None."""


@final
class CandidateEvaluator:
    """Measures candidates on fixed prompts and stores the values.

    Attributes:
        target, directions, mode: the model, its directions, and whether refusal is suppressed or induced.
        progress: see `Progress`.
        resume: start a forward pass at the first layer that its candidates change, from recorded inputs; False runs the
            layers below again, with the same results.
        passes: decoder layers run for candidates so far, times rows.
    """

    def __init__(
        self,
        target: TargetModel,
        directions: Directions,
        mode: SteeringMode,
        *,
        moved: Sequence[Prompt],
        harmless: Sequence[Prompt],
        resume: bool = True,
        any_score: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Runs the original model twice over the prompts, for their scores and for the inputs of its layers.

        As in the extraction, only prompts with a refusal score of the right sign are used: harmless prompts below 0,
        and, where refusal is suppressed, harmful prompts above 0.

        Args:
            target: the model.
            directions: of this model.
            mode: whether refusal is suppressed or induced.
            moved: prompts whose refusal is to be moved; the first SCREENING of those used screen candidates.
            harmless: prompts whose answers should not change; likewise.
            resume: see above.
            any_score: use all prompts, whatever their score.
            progress: called for each candidate and batch.

        Raises:
            DataError: a side has no prompts, or none with the right sign.
        """
        self.target, self.directions, self.mode = target, directions, mode
        self.resume = resume and can_enter_at_layer(target.model)
        self.passes = 0
        self._number = next(EVALUATORS)
        self.progress: Progress = progress or (lambda what, count, total: None)
        self._values: dict[tuple[SteeringCandidate, Metric], dict[Subset, list[float]]] = {}
        self._recorded: dict[tuple[PromptSet, Subset], list[Recorded]] = {}
        sides: dict[PromptSet, Sequence[Prompt]] = {"moved": moved, "harmless": harmless}
        for side, available in sides.items():
            require_prompts(f"{side} prompts to search with", available)
            sign: PromptSide | None = "harmless" if side == "harmless" else "harmful" if mode == "suppress" else None
            prompts = list(available) if any_score or sign is None else prompts_of_side(target, sign, available)
            self._recorded[side, "screening"] = [*self._record(prompts[:SCREENING])]
            self._recorded[side, "remaining"] = [*self._record(prompts[SCREENING:])]

    @property
    def num_prompts(self) -> int:
        """Number of prompts of both sides."""
        return sum(recorded.rows for batches in self._recorded.values() for recorded in batches)

    def original_score(self, side: PromptSet, subsets: Sequence[Subset] = SUBSETS) -> float:
        """Mean refusal score of the original model."""
        logits = [recorded.on(self.target.model)[1] for subset in subsets for recorded in self._recorded[side, subset]]
        return float(refusal_score(torch.cat(logits), self.target.refusal_tokens).mean())

    def measure(
        self, candidates: Iterable[SteeringCandidate], metric: Metric, subsets: Sequence[Subset] = SUBSETS
    ) -> None:
        """Measures the candidates, except where the values are stored already."""
        unique = list(dict.fromkeys(candidates))
        for subset in subsets:
            missing = [candidate for candidate in unique if subset not in self._values.get((candidate, metric), {})]
            total = len(missing) * len(self._recorded[PROMPTS_OF[metric], subset])
            for count, (candidate, values) in enumerate(self._measured(missing, metric, subset), 1):
                self._values.setdefault((candidate, metric), {}).setdefault(subset, []).extend(values)
                self.progress(METRIC_NAMES[metric], count, total)

    def mean(self, candidate: SteeringCandidate, metric: Metric) -> float:
        """Mean over the prompts measured so far; NaN where it is not finite."""
        values = [value for subset_values in self._values[candidate, metric].values() for value in subset_values]
        mean = fmean(values) if all(map(isfinite, values)) else float("nan")
        return mean if isfinite(mean) else float("nan")

    def count(self, candidate: SteeringCandidate, metric: Metric) -> int:
        """Number of prompts measured so far."""
        return sum(map(len, self._values.get((candidate, metric), {}).values()))

    def _record(self, prompts: Sequence[Prompt]) -> Iterator[Recorded]:
        model, start = self.target.model, sum(map(len, self._recorded.values()))
        batches = measured(prompts, self.target.batch_size, partial(record, model))
        for index, (_, (batch, inputs, original_BV)) in enumerate(batches, start):
            yield Recorded(self._number, index, batch, inputs, original_BV)

    def _measured(
        self, candidates: Sequence[SteeringCandidate], metric: Metric, subset: Subset
    ) -> Iterator[tuple[SteeringCandidate, list[float]]]:
        plan = list(self._plan(candidates, metric, subset))
        size = _PASSES_AT_ONCE * holders(self.target.model).count
        for start in range(0, len(plan), size):  # their vectors are not all in memory at once
            chunks = plan[start : start + size]
            passes = [self._pass(recorded, chunk, metric) for recorded, chunk in chunks]
            for (_, chunk), values in zip(chunks, shared_results(self.target.subject, computed, passes), strict=True):
                yield from zip(chunk, values, strict=True)

    def _plan(
        self, candidates: Sequence[SteeringCandidate], metric: Metric, subset: Subset
    ) -> Iterator[tuple[Recorded, list[SteeringCandidate]]]:
        """The candidates of every forward pass: a single one that is ablated, or several of a layer that are added."""
        ablation = [candidate for candidate in candidates if _is_ablated(candidate, metric)]
        addition = [candidate for candidate in candidates if not _is_ablated(candidate, metric)]
        for recorded in self._recorded[PROMPTS_OF[metric], subset]:
            yield from ((recorded, [candidate]) for candidate in ablation)
            copies = max(1, self.target.batch_size // recorded.rows)
            for _, group in groupby(sorted(addition, key=_order), key=lambda candidate: candidate.layer):
                of_layer = list(group)
                for start in range(0, len(of_layer), copies):
                    yield recorded, of_layer[start : start + copies]

    def _pass(self, recorded: Recorded, candidates: Sequence[SteeringCandidate], metric: Metric) -> CandidatePass:
        first, num_layers, rows = candidates[0], self.target.num_layers, len(candidates) * recorded.rows
        start: int | None = None
        change: Change[None] = unchanged
        if _is_ablated(first, metric):
            direction_D = self.directions.of_layer(first.layer, first.position)
            # At the first layer's input all prompts share the template's tokens, so the direction is 0 there.
            change = partial(ablated_in, direction_D.clone()) if direction_D.any() else unchanged
        else:
            mode: SteeringMode = "induce" if metric == "induced" else self.mode
            change = additions_in_rows(self.directions, candidates, mode, rows=recorded.rows).entered
            start = first.layer if self.resume else None
        self.passes += rows * (num_layers - (start or 0))
        tokens = None if metric == "kl" else self.target.refusal_tokens
        return CandidatePass(recorded, change, start, len(candidates), tokens)


def _is_ablated(candidate: SteeringCandidate, metric: Metric) -> bool:
    return candidate.family == "layer" and metric != "induced"


def _order(candidate: SteeringCandidate) -> tuple[object, ...]:
    """Groups candidates by layer, and within a layer those that differ in the coefficient alone."""
    return candidate.layer, candidate.experts, candidate.position, candidate.coefficient
