"""What the numbers of a landscape allow one to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.landscape import HARMFUL, BasinEnd, BasinWidth, DirectionKind, LandscapeResult

_BROKEN = " (beyond it the model is broken)"
_LOW_ENDS: Mapping[BasinEnd, str] = {"crossed": "", "grid": " or less", "broken": _BROKEN}
_HIGH_ENDS: Mapping[BasinEnd, str] = {"crossed": "", "grid": " or more", "broken": _BROKEN}
_LANDMARKS: tuple[tuple[DirectionKind, float, str], ...] = (
    ("aligned", -1.0, "the base"),
    ("tuned", 1.0, "the fine-tuned model"),
)


def claim(found: LandscapeResult) -> str:
    """A few sentences, from held-out prompts alone."""
    return " ".join(_sentences(found))


def amount(value: float) -> str:
    """`+0.5`, `−1`, `0`: an amount, to two places."""
    shown = f"{value:+.2f}".rstrip("0").rstrip(".")
    return "0" if float(shown) == 0 else shown.replace("-", "\u2212")


def reach(basin: BasinWidth) -> str:
    """`−0.4 to +1.5 or more`: where it begins and ends."""
    return f"{amount(basin.low)}{_LOW_ENDS[basin.low_end]} to {amount(basin.high)}{_HIGH_ENDS[basin.high_end]}"


def width(basin: BasinWidth) -> str:
    """`1.9`, or `at least 1.9` where an end is censored."""
    return f"{'at least ' if basin.censored else ''}{basin.width:.2f}"


def _sentences(found: LandscapeResult) -> Iterator[str]:
    origin = found.points[0].rates[HARMFUL]
    yield f"The model as it is answers {_rate(origin)} of held-out harmful requests."
    below = f"the harmful rate stays below {found.threshold:.0%}"
    if not any(basin.width for basin in found.basins):
        yield f"It is in no basin: nowhere around it {below}."
    for one in found.directions:
        basin = found.basin(one.name)
        if one.kind != "random" and basin.width:
            yield f"Along the {_name(one.kind)} direction {below} from {reach(basin)}, a width of {width(basin)}."
    yield from _random(found, below)
    for kind, place, what in _LANDMARKS:
        rate = _at(found, kind, place)
        if rate is not None:
            yield f"At {amount(place)}, {what}, it is {_rate(rate)}."
    broken = [one for one in found.points if one.rate(HARMFUL, found.most_unscored) is None]
    if broken:
        yield (
            f"At {len(broken)} of {len(found.points)} points more than {found.most_unscored:.0%} of the replies could "
            "not be judged: the model is broken there, and no width counts them."
        )


def _random(found: LandscapeResult, below: str) -> Iterator[str]:
    drawn = [found.basin(one.name) for one in found.directions if one.kind == "random"]
    if drawn and any(basin.width for basin in drawn):
        many = f"{len(drawn)} random directions" if len(drawn) > 1 else "a random direction"
        yield f"Along {many} as long as the aligned one {below} over {_widths(drawn)}."


def _widths(drawn: Sequence[BasinWidth]) -> str:
    shown = [width(basin) for basin in sorted(drawn, key=lambda basin: basin.width)]
    return f"a width of {shown[0]}" if len(set(shown)) == 1 else f"widths from {shown[0]} to {shown[-1]}"


def _name(kind: DirectionKind) -> str:
    return {"aligned": "aligned", "tuned": "fine-tuning", "random": "random"}[kind]


def _at(found: LandscapeResult, kind: DirectionKind, place: float) -> Rate | None:
    """The rate at an amount of the direction of a kind, where it was measured and the model is not broken."""
    name = next((one.name for one in found.directions if one.kind == kind), None)
    if name is None:
        return None
    point = dict(found.curve(name)).get(place)
    return None if point is None else point.rate(HARMFUL, found.most_unscored)


def _rate(rate: Rate) -> str:
    unscored = f", {rate.unscored} of {rate.n} not judged" if rate.unscored else ""
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}{unscored}]"
