"""The landscape: rates at points of weight space around a model, and the width of its safety basin.

At a point the weights are W + sum of amount x d over directions d; the same held-out prompts are asked at every point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.landscape import HARMFUL, BasinWidth, LandscapeDirection, LandscapePoint, LandscapeResult
from seawall.config.eval import EvalConfig
from seawall.config.landscape import LandscapeConfig
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.rates import group_rates, not_refused
from seawall.evaluation.samples import SampleLog
from seawall.methods.landscape.claim import claim
from seawall.methods.landscape.context import LandscapeContext
from seawall.methods.landscape.extent import extent, mean_safety
from seawall.methods.landscape.moved import moved_by
from seawall.models.everywhere import everywhere

ORIGIN = "origin"
"""The name of the point without any move."""


def measure_landscape(context: LandscapeContext, scratch: Path) -> None:
    """The stage `landscape`, into its scratch folder."""
    # Directions d: alignment (W - W_base), fine-tuning (W_tuned - W), and random ones with the norms of the first.
    config, directions = context.config, context.directions
    plane = plane_of(config, [(direction.name, direction.kind) for direction in directions])
    grid = grid_points(config, [direction.name for direction in directions], plane)
    context.reporter.stage(f"{len(grid)} points, {len(context.held_out)} held-out prompts at each")
    result = LandscapeResult(
        model_fingerprint=context.opened.fingerprint,
        directions=tuple(
            LandscapeDirection(direction.name, direction.kind, direction.source, direction.norm, direction.tensors)
            for direction in directions
        ),
        # Move the weights, ask, restore the weights: one point after the other.
        points=tuple(measure(context, grid, scratch)),
        plane=plane,
        threshold=config.threshold,
        most_unscored=config.most_unscored,
    )
    # The basin along d: the amounts around 0 at which the harmful rate stays below the threshold.
    result = replace(result, basins=tuple(basins(result)))
    replace(result, claim=claim(result)).save(scratch)


@dataclass(frozen=True, slots=True)
class GridPoint:
    """A point to measure: (direction, amount) pairs with non-zero amounts."""

    amounts: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """`origin`, `aligned-0.5`, or `aligned-0.5,random-1+1.0`."""
        return ",".join(f"{name}{amount:+}" for name, amount in self.amounts) or ORIGIN


def grid_points(config: LandscapeConfig, directions: Sequence[str], plane: tuple[str, str] | None) -> list[GridPoint]:
    """The origin, then each curve from 0 outwards, then the plane; no point twice."""
    points = [GridPoint(())]
    for name in directions:
        points += [GridPoint(((name, amount),)) for amount in sorted(config.amounts, key=abs) if amount]
    if plane is not None:
        first, second = plane
        amounts = sorted(config.plane_amounts, key=abs)
        pairs = [((first, x), (second, y)) for x in amounts for y in amounts]
        points += [GridPoint(tuple(move for move in pair if move[1])) for pair in pairs]
    return list(dict.fromkeys(points))


def plane_of(config: LandscapeConfig, kinds: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The two directions of the map: alignment, and fine-tuning (a random direction where there is no fine-tuning).

    Args:
        config: `plane_amounts`; None is returned where it is empty.
        kinds: (name, kind) of the directions, in order.
    """
    names = [name for name, _ in kinds]
    return (names[0], names[1]) if config.plane_amounts and len(names) > 1 else None


def measure(context: LandscapeContext, grid: Sequence[GridPoint], folder: Path) -> list[LandscapePoint]:
    """The rates at every point. Replies are saved batch by batch, so a rerun asks only prompts without a reply.

    Raises:
        SeawallError: a file cannot be read, or a judge's endpoint does not answer; saved replies stay.
    """
    (folder / "samples").mkdir(exist_ok=True)
    points = []
    with context.movable() as moved:
        for number, point in enumerate(grid, 1):
            path = folder / "samples" / f"{point.name}.jsonl"
            samples = _samples(context, point, path, f"{point.name} ({number} of {len(grid)})")
            amounts, rates = dict(point.amounts), _rates(samples, context.recipe.eval)
            points.append(LandscapePoint(point.name, amounts, rates, realised=moved.realised(amounts)))
    return points


def basins(result: LandscapeResult) -> Iterator[BasinWidth]:
    """The basin along each direction, and its narrowest and widest extent within the intervals of the rates."""
    for direction in result.directions:
        curve = result.curve(direction.name)
        amounts = [amount for amount, _ in curve]
        rates = [point.rate(HARMFUL, result.most_unscored) for _, point in curve]
        middle, narrowest, widest = (
            extent(amounts, [None if rate is None else bound(rate) for rate in rates], result.threshold)
            for bound in (_rate, _high, _low)
        )
        safety = mean_safety(amounts, [None if rate is None else rate.rate for rate in rates])
        yield BasinWidth(
            direction=direction.name,
            low=middle.low,
            high=middle.high,
            low_end=middle.low_end,
            high_end=middle.high_end,
            narrowest=narrowest.width,
            widest=widest.width,
            safety=safety,
        )


def _samples(context: LandscapeContext, point: GridPoint, path: Path, label: str) -> list[Sample]:
    missing = not path.is_file() or bool(SampleLog(path, context.held_out).missing)
    move = partial(moved_by, dict(point.amounts))
    with everywhere(context.opened.model, move) if missing else nullcontext():
        return generate_and_judge(
            context.opened.model,
            context.opened.tokenizer,
            context.held_out,
            context.recipe.eval,
            judge=context.judge,
            path=path,
            progress=lambda count, total: context.reporter.step(label, count, total),
        )


def _rates(samples: Sequence[Sample], config: EvalConfig) -> dict[str, Rate]:
    plain = [sample for sample in samples if sample.group == PLAIN]
    harmless = [sample for sample in samples if sample.group != PLAIN]
    return {HARMFUL: not_refused(plain), **group_rates(harmless)}


def _rate(rate: Rate) -> float:
    assert rate.rate is not None  # points without a scored reply count as broken
    return rate.rate


def _high(rate: Rate) -> float:
    return rate.high


def _low(rate: Rate) -> float:
    return rate.low
