"""Where a landscape is measured, and what the model does there: the same prompts at every point, asked once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.landscape import HARMFUL, BasinWidth, LandscapePoint, LandscapeResult
from seawall.config.eval import EvalConfig
from seawall.config.landscape import LandscapeConfig
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.rates import group_rates
from seawall.evaluation.samples import SampleLog
from seawall.methods.landscape.context import LandscapeContext
from seawall.methods.landscape.extent import extent, mean_safety
from seawall.methods.landscape.moved import MovedWeights

ORIGIN = "origin"
"""The name of the model as it is."""


@dataclass(frozen=True, slots=True)
class Displacement:
    """A point to measure: amounts by direction, as (name, amount) without zeros."""

    amounts: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """`origin`, `aligned-0.5`, or `aligned-0.5,random-1+1.0`."""
        return ",".join(f"{name}{amount:+}" for name, amount in self.amounts) or ORIGIN


def settings(config: LandscapeConfig, directions: Sequence[str], plane: tuple[str, str] | None) -> list[Displacement]:
    """The model as it is, then every curve from 0 outwards, then the rest of the plane; each point once."""
    found = [Displacement(())]
    for name in directions:
        found += [Displacement(((name, amount),)) for amount in sorted(config.amounts, key=abs) if amount]
    if plane is not None:
        first, second = plane
        amounts = sorted(config.plane_amounts, key=abs)
        pairs = [((first, x), (second, y)) for x in amounts for y in amounts]
        found += [Displacement(tuple(part for part in pair if part[1])) for pair in pairs]
    return list(dict.fromkeys(found))


def plane_of(config: LandscapeConfig, kinds: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The directions of the map: the aligned one and the next, which is that of the fine-tuning where there is one.

    Args:
        config: the amounts; without any there is no map.
        kinds: (name, kind) of the directions, in their order.
    """
    names = [name for name, _ in kinds]
    return (names[0], names[1]) if config.plane_amounts and len(names) > 1 else None


def measure(context: LandscapeContext, chosen: Sequence[Displacement], folder: Path) -> list[LandscapePoint]:
    """The rates at every point. Every batch of replies is kept as soon as it is judged, and nothing is asked twice.

    Raises:
        SeawallError: a file cannot be read, or a judge's endpoint does not answer; what is done stays.
    """
    moved = MovedWeights(context.opened.model, context.checkpoint.outline, context.directions)
    (folder / "samples").mkdir(exist_ok=True)
    found = []
    for at, one in enumerate(chosen, 1):
        samples = _samples(context, moved, one, folder / "samples" / f"{one.name}.jsonl", (at, len(chosen)))
        found.append(LandscapePoint(one.name, dict(one.amounts), _rates(samples, context.recipe.eval)))
    return found


def basins(found: LandscapeResult) -> Iterator[BasinWidth]:
    """The width along every direction, and what the intervals of the rates allow it to be."""
    for one in found.directions:
        curve = found.curve(one.name)
        amounts = [amount for amount, _ in curve]
        known = [point.rate(HARMFUL, found.most_unscored) for _, point in curve]
        middle, upper, lower = (
            extent(amounts, [None if rate is None else side(rate) for rate in known], found.threshold)
            for side in (_rate, _high, _low)
        )
        safety = mean_safety(amounts, [None if rate is None else rate.rate for rate in known])
        yield BasinWidth(
            direction=one.name,
            low=middle.low,
            high=middle.high,
            low_end=middle.low_end,
            high_end=middle.high_end,
            narrowest=upper.width,
            widest=lower.width,
            safety=safety,
        )


def _samples(
    context: LandscapeContext, moved: MovedWeights, one: Displacement, path: Path, place: tuple[int, int]
) -> list[Sample]:
    waiting = not path.is_file() or bool(SampleLog(path, context.asked).missing)
    what = f"{one.name} ({place[0]} of {place[1]})"
    with moved.at(dict(one.amounts)) if waiting else nullcontext():
        return generate_and_judge(
            context.opened.model,
            context.opened.tokenizer,
            context.asked,
            context.recipe.eval,
            judge=context.judge,
            path=path,
            progress=lambda done, total: context.reporter.step(what, done, total),
        )


def _rates(samples: Sequence[Sample], config: EvalConfig) -> dict[str, Rate]:
    plain = [sample for sample in samples if sample.group == PLAIN]
    harmful = rate_with_interval(
        [sample.label for sample in plain],
        [sample.goal for sample in plain],
        "complied",
        resamples=config.bootstrap,
        seed=config.seed,
    )
    rest = [sample for sample in samples if sample.group != PLAIN]
    return {HARMFUL: harmful, **group_rates(rest, resamples=config.bootstrap, seed=config.seed)}


def _rate(rate: Rate) -> float:
    return rate.rate


def _high(rate: Rate) -> float:
    return rate.high


def _low(rate: Rate) -> float:
    return rate.low
