"""Measuring candidates on the prompts of the search: many of them as rows of one forward pass.

Legend: B prompts of a batch, R changed copies of each, V vocabulary.
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
from seawall.methods.steer.changes import applied_in_rows
from seawall.methods.steer.extract import prompts_of_side, require_prompts
from seawall.methods.steer.score import divergence, refusal_score
from seawall.methods.steer.target import Prompt, SteeringTarget, batches, last_logits
from seawall.models.hidden.intervene import ablated
from seawall.models.hidden.resume import BlockInputs, record_block_inputs, resumed

Number = Literal["score", "kl", "induced"]
"""`score`: refusal score of a prompt whose refusal is to be moved. `kl`: divergence of a harmless prompt's next token
from the original model's, in nats. `induced`: refusal score of a harmless prompt with the direction added. A layer's
direction is ablated everywhere for the first two; an expert's is taken away or added at its block."""
Side = Literal["moved", "harmless"]
Part = Literal["few", "rest"]
"""The first prompts of a side, which sort candidates out; and its others."""
PARTS: tuple[Part, ...] = ("few", "rest")
SIDE: dict[Number, Side] = {"score": "moved", "kl": "harmless", "induced": "harmless"}
FEW = 8
NAMES: dict[Number, str] = {"score": "refusal scores", "kl": "harmless divergence", "induced": "induced refusal"}
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A batch of prompts as the original model sees it."""

    batch: Batch
    inputs: BlockInputs
    original_BV: Tensor


@final
class Bench:
    """Prompts that candidates are measured on, and the numbers measured so far.

    Attributes:
        target, directions, mode: what is measured.
        progress: see `Progress`; does nothing where nobody asked for it.
        resume: start a forward pass at the first layer that its candidates change, from recorded inputs; False runs
            the layers below again, for the same numbers.
        passes: decoder layers run for candidates so far, times rows.
    """

    def __init__(
        self,
        target: SteeringTarget,
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

        As in the extraction, prompts count only where the original model's refusal score has the right sign: harmless
        ones below 0, and harmful ones, whose refusal is to be suppressed, above 0.

        Args:
            target: the model.
            directions: of this model.
            mode: which way refusal is to be moved.
            moved: prompts whose refusal is to be moved; the first FEW that count sort candidates out.
            harmless: prompts that are to be left alone; likewise.
            resume: see above.
            any_score: whatever their scores, all prompts count.
            progress: told how many candidates are measured on how many batches.

        Raises:
            DataError: a side has no prompts, or none that counts.
        """
        self.target, self.directions, self.mode, self.resume = target, directions, mode, resume
        self.passes = 0
        self.progress: Progress = progress or (lambda what, done, total: None)
        self._values: dict[tuple[SteeringCandidate, Number], dict[Part, list[float]]] = {}
        self._recorded: dict[tuple[Side, Part], list[_Recorded]] = {}
        sides: dict[Side, Sequence[Prompt]] = {"moved": moved, "harmless": harmless}
        for side, given in sides.items():
            require_prompts(f"{side} prompts to search with", given)
            wanted: PromptSide | None = "harmless" if side == "harmless" else "harmful" if mode == "suppress" else None
            prompts = list(given) if any_score or wanted is None else prompts_of_side(target, wanted, given)
            self._recorded[side, "few"] = [*self._record(prompts[:FEW])]
            self._recorded[side, "rest"] = [*self._record(prompts[FEW:])]

    @property
    def num_prompts(self) -> int:
        """How many prompts there are on both sides."""
        return sum(len(one.original_BV) for some in self._recorded.values() for one in some)

    def original_score(self, side: Side, parts: Sequence[Part] = PARTS) -> float:
        """Mean refusal score of the original model."""
        every = [one.original_BV for part in parts for one in self._recorded[side, part]]
        return float(refusal_score(torch.cat(every), self.target.refusal_tokens).mean())

    def read(self, candidates: Iterable[SteeringCandidate], number: Number, parts: Sequence[Part] = PARTS) -> None:
        """Measures what is not measured yet."""
        asked = list(dict.fromkeys(candidates))
        for part in parts:
            missing = [one for one in asked if part not in self._values.get((one, number), {})]
            total = len(missing) * len(self._recorded[SIDE[number], part])
            for done, (candidate, values) in enumerate(self._measured(missing, number, part), 1):
                self._values.setdefault((candidate, number), {}).setdefault(part, []).extend(values)
                self.progress(NAMES[number], done, total)

    def mean(self, candidate: SteeringCandidate, number: Number) -> float:
        """The mean over the prompts measured so far; NaN where it is not finite."""
        values = [value for some in self._values[candidate, number].values() for value in some]
        mean = fmean(values) if all(map(isfinite, values)) else float("nan")
        return mean if isfinite(mean) else float("nan")

    def count(self, candidate: SteeringCandidate, number: Number) -> int:
        """Over how many prompts."""
        return sum(map(len, self._values.get((candidate, number), {}).values()))

    def _record(self, prompts: Sequence[Prompt]) -> Iterator[_Recorded]:
        for _, batch in batches(prompts, self.target.batch_size):
            with record_block_inputs(self.target.model) as inputs:
                original_BV = last_logits(self.target.model, batch)
            yield _Recorded(batch, inputs, original_BV)

    def _measured(
        self, candidates: Sequence[SteeringCandidate], number: Number, part: Part
    ) -> Iterator[tuple[SteeringCandidate, list[float]]]:
        ablation = [one for one in candidates if not one.experts and number != "induced"]
        addition = [one for one in candidates if one.experts or number == "induced"]
        for recorded in self._recorded[SIDE[number], part]:
            for candidate in ablation:
                yield candidate, self._ablated(candidate, recorded, number)
            at_once = max(1, self.target.batch_size // len(recorded.original_BV))
            for layer, group in groupby(sorted(addition, key=_place), key=lambda one: one.layer):
                of_layer = list(group)
                for start in range(0, len(of_layer), at_once):
                    some = of_layer[start : start + at_once]
                    yield from zip(some, self._added(some, layer, recorded, number), strict=True)

    def _ablated(self, candidate: SteeringCandidate, recorded: _Recorded, number: Number) -> list[float]:
        direction_D = self.directions.of_layer(candidate.layer, candidate.position)
        # At the first layer's input the template's tokens are the same in all prompts, and nothing is there to ablate.
        with ablated(self.target.model, direction_D) if direction_D.any() else nullcontext():
            logits_BV = last_logits(self.target.model, recorded.batch)
        self.passes += len(logits_BV) * self.target.num_layers
        return self._numbers(recorded.original_BV, logits_BV, number)

    def _added(
        self, some: Sequence[SteeringCandidate], layer: int, recorded: _Recorded, number: Number
    ) -> list[list[float]]:
        rows, model = len(recorded.original_BV), self.target.model
        mode: SteeringMode = "induce" if number == "induced" else self.mode
        start = resumed(model, recorded.inputs, layer, repeats=len(some)) if self.resume else nullcontext()
        with start, applied_in_rows(self.target, self.directions, some, mode, rows=rows):
            logits_BV = last_logits(model, recorded.batch, repeats=len(some))
        self.passes += len(logits_BV) * (self.target.num_layers - (layer if self.resume else 0))
        by_candidate_RBV = logits_BV.view(len(some), rows, -1)
        return [self._numbers(recorded.original_BV, part_BV, number) for part_BV in by_candidate_RBV]

    def _numbers(self, original_BV: Tensor, logits_BV: Tensor, number: Number) -> list[float]:
        if number == "kl":
            values_B = divergence(original_BV, logits_BV)
        else:
            values_B = refusal_score(logits_BV, self.target.refusal_tokens)
        return [float(value) for value in values_B.tolist()]


def _place(candidate: SteeringCandidate) -> tuple[object, ...]:
    """Candidates of one layer stand together, and in it those that differ in the coefficient alone."""
    return candidate.layer, candidate.experts, candidate.position, candidate.coefficient
