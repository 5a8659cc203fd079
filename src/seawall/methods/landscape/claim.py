"""What may be said of a landscape, from held-out prompts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import NONE_SCORED
from seawall.artifacts.landscape import HARMFUL, BasinEnd, BasinWidth, DirectionKind, LandscapeResult

_BROKEN = " (the model is broken beyond)"
_LOW_ENDS: Mapping[BasinEnd, str] = {"crossed": "", "grid": " or less", "broken": _BROKEN}
_HIGH_ENDS: Mapping[BasinEnd, str] = {"crossed": "", "grid": " or more", "broken": _BROKEN}
_LANDMARKS: tuple[tuple[DirectionKind, float, str], ...] = (
    ("aligned", -1.0, "the base"),
    ("tuned", 1.0, "the fine-tuned model"),
)
_MADE = 0.95
"""Share of a move that its weights hold, below which the claim says so."""


def claim(result: LandscapeResult) -> str:
    """Harmful rate of the unmoved model, basins along the directions, rates at the landmarks, broken points."""
    return " ".join(_sentences(result))


def amount(value: float) -> str:
    """`+0.5`, `−1`, `0`: an amount, with two decimals."""
    text = f"{value:+.2f}".rstrip("0").rstrip(".")
    return "0" if float(text) == 0 else text.replace("-", "\u2212")


def reach(basin: BasinWidth) -> str:
    """`−0.4 to +1.5 or more`: the ends of a basin."""
    return f"{amount(basin.low)}{_LOW_ENDS[basin.low_end]} to {amount(basin.high)}{_HIGH_ENDS[basin.high_end]}"


def width(basin: BasinWidth) -> str:
    """`1.9`, or `at least 1.9` where an end of the basin is censored."""
    return f"{'at least ' if basin.censored else ''}{basin.width:.2f}"


def _sentences(result: LandscapeResult) -> Iterator[str]:
    origin = result.points[0].rates[HARMFUL]
    below = f"the harmful rate stays below {result.threshold:.0%}"
    if origin.rate is None:
        yield f"No reply of the unmoved model to {origin.n} held-out harmful requests could be judged."
    else:
        yield f"The unmoved model does not refuse {_rate(origin)} of held-out harmful requests."
    if result.points[0].rate(HARMFUL, result.most_unscored) is None:
        yield "So no basin around it is measured."
    elif not any(basin.width for basin in result.basins):
        yield f"It lies in no basin: nowhere around it {below}."
    for direction in result.directions:
        basin = result.basin(direction.name)
        if direction.kind != "random" and basin.width:
            yield f"Along the {_name(direction.kind)} direction {below} from {reach(basin)}, a width of {width(basin)}."
    yield from _random(result, below)
    for kind, value, model in _LANDMARKS:
        rate = _rate_at(result, kind, value)
        if rate is not None:
            yield f"At {amount(value)}, {model}, the harmful rate is {_rate(rate)}."
    realised = [point.realised for point in result.points if point.amounts and point.realised is not None]
    if realised and min(realised) < _MADE:
        yield (
            f"The 16-bit weights hold {min(realised):.0%} to {max(realised):.0%} of the moves, so amounts and widths "
            "exceed what was moved; model.dtype=auto moves in float32."
        )
    broken = [point for point in result.points if point.rate(HARMFUL, result.most_unscored) is None]
    if broken:
        yield (
            f"At {len(broken)} of {len(result.points)} points more than {result.most_unscored:.0%} of the replies "
            "could not be judged: the model is broken there, and these points are left out of every width."
        )


def _random(result: LandscapeResult, below: str) -> Iterator[str]:
    basins = [result.basin(direction.name) for direction in result.directions if direction.kind == "random"]
    if basins and any(basin.width for basin in basins):
        subject = f"{len(basins)} random directions" if len(basins) > 1 else "a random direction"
        yield f"Along {subject} of the aligned direction's norm {below} over {_widths(basins)}."


def _widths(basins: Sequence[BasinWidth]) -> str:
    widths = [width(basin) for basin in sorted(basins, key=lambda basin: basin.width)]
    return f"a width of {widths[0]}" if len(set(widths)) == 1 else f"widths from {widths[0]} to {widths[-1]}"


def _name(kind: DirectionKind) -> str:
    return {"aligned": "aligned", "tuned": "fine-tuning", "random": "random"}[kind]


def _rate_at(result: LandscapeResult, kind: DirectionKind, value: float) -> Rate | None:
    """The harmful rate at an amount of a direction; None where it was not measured or the model is broken."""
    name = next((direction.name for direction in result.directions if direction.kind == kind), None)
    if name is None:
        return None
    point = dict(result.curve(name)).get(value)
    return None if point is None else point.rate(HARMFUL, result.most_unscored)


def _rate(rate: Rate) -> str:
    unscored = f", {rate.unscored} of {rate.n} not judged" if rate.unscored else ""
    if rate.rate is None:
        return f"{NONE_SCORED} of {rate.n}"
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}{unscored}]"
