"""Scores of candidates on validation prompts, with many candidates as rows of one forward pass.

Legend: B prompts of a batch, R modified copies of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from statistics import fmean
from typing import Literal, final

import torch
from torch import Tensor

from seawall.artifacts.directions import Directions, PromptSide
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.batching import Batch
from seawall.methods.steer.extract import prompts_of_side, require_prompts
from seawall.methods.steer.interventions import applied_in_rows
from seawall.methods.steer.score import divergence, refusal_score
from seawall.methods.steer.target import Prompt, TargetModel, last_logits, measured
from seawall.models.hidden.enter_at_layer import can_enter_at_layer
from seawall.models.hidden.intervene import ablated
from seawall.models.hidden.resume import BlockInputs, record_block_inputs, resumed

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
METRIC_NAMES: dict[Metric, str] = {
    "score": "refusal scores",
    "kl": "harmless divergence",
    "induced": "induced refusal",
}
Progress = Callable[[str, int, int], None]
"""(what is measured, count, total) -> None."""


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A batch of prompts, with the original model's layer inputs and logits."""

    batch: Batch
    inputs: BlockInputs
    original_BV: Tensor


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
        self.progress: Progress = progress or (lambda what, count, total: None)
        self._values: dict[tuple[SteeringCandidate, Metric], dict[Subset, list[float]]] = {}
        self._recorded: dict[tuple[PromptSet, Subset], list[_Recorded]] = {}
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
        return sum(len(recorded.original_BV) for batches in self._recorded.values() for recorded in batches)

    def original_score(self, side: PromptSet, subsets: Sequence[Subset] = SUBSETS) -> float:
        """Mean refusal score of the original model."""
        logits = [recorded.original_BV for subset in subsets for recorded in self._recorded[side, subset]]
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

    def _record(self, prompts: Sequence[Prompt]) -> Iterator[_Recorded]:
        def record(batch: Batch) -> _Recorded:
            with record_block_inputs(self.target.model) as inputs:
                original_BV = last_logits(self.target.model, batch)
            return _Recorded(batch, inputs, original_BV)

        yield from (recorded for _, recorded in measured(prompts, self.target.batch_size, record))

    def _measured(
        self, candidates: Sequence[SteeringCandidate], metric: Metric, subset: Subset
    ) -> Iterator[tuple[SteeringCandidate, list[float]]]:
        ablation = [candidate for candidate in candidates if candidate.family == "layer" and metric != "induced"]
        addition = [candidate for candidate in candidates if candidate.family != "layer" or metric == "induced"]
        for recorded in self._recorded[PROMPTS_OF[metric], subset]:
            for candidate in ablation:
                yield candidate, self._ablated(candidate, recorded, metric)
            copies = max(1, self.target.batch_size // len(recorded.original_BV))
            for layer, group in groupby(sorted(addition, key=_order), key=lambda candidate: candidate.layer):
                of_layer = list(group)
                for start in range(0, len(of_layer), copies):
                    chunk = of_layer[start : start + copies]
                    yield from zip(chunk, self._added(chunk, layer, recorded, metric), strict=True)

    def _ablated(self, candidate: SteeringCandidate, recorded: _Recorded, metric: Metric) -> list[float]:
        direction_D = self.directions.of_layer(candidate.layer, candidate.position)
        # At the first layer's input all prompts share the template's tokens, so the direction is 0 there.
        with ablated(self.target.model, direction_D) if direction_D.any() else nullcontext():
            logits_BV = last_logits(self.target.model, recorded.batch)
        self.passes += len(logits_BV) * self.target.num_layers
        return self._metric_values(recorded.original_BV, logits_BV, metric)

    def _added(
        self, candidates: Sequence[SteeringCandidate], layer: int, recorded: _Recorded, metric: Metric
    ) -> list[list[float]]:
        rows, model = len(recorded.original_BV), self.target.model
        mode: SteeringMode = "induce" if metric == "induced" else self.mode
        start = resumed(model, recorded.inputs, layer, repeats=len(candidates)) if self.resume else nullcontext()
        with start, applied_in_rows(self.target, self.directions, candidates, mode, rows=rows):
            logits_BV = last_logits(model, recorded.batch, repeats=len(candidates))
        self.passes += len(logits_BV) * (self.target.num_layers - (layer if self.resume else 0))
        logits_RBV = logits_BV.view(len(candidates), rows, -1)
        return [self._metric_values(recorded.original_BV, copy_BV, metric) for copy_BV in logits_RBV]

    def _metric_values(self, original_BV: Tensor, logits_BV: Tensor, metric: Metric) -> list[float]:
        if metric == "kl":
            values_B = divergence(original_BV, logits_BV)
        else:
            values_B = refusal_score(logits_BV, self.target.refusal_tokens)
        return [float(value) for value in values_B.tolist()]


def _order(candidate: SteeringCandidate) -> tuple[object, ...]:
    """Groups candidates by layer, and within a layer those that differ in the coefficient alone."""
    return candidate.layer, candidate.experts, candidate.position, candidate.coefficient
