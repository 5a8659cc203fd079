"""A landscape as terminal table and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from seawall.artifacts.groups import BENIGN, BORDERLINE, rate_text
from seawall.artifacts.landscape import HARMFUL, LandscapeDirection, LandscapePoint, LandscapeResult
from seawall.methods.landscape.claim import amount, reach, width
from seawall.report.landscape import BasinRow, Curve, CurvePanel, LandscapeView, RateMap
from seawall.report.wording import amount as counted

_GROUPS: Mapping[str, str] = {
    HARMFUL: "Harmful requests not refused",
    BORDERLINE: "Over-refusal",
    BENIGN: "Harmless requests answered",
}

_EXACT = 0.995
"""Share of a move from which the table does not mention its rounding."""
_SHOWN = 23
"""Characters of a fingerprint; landscape.json has all."""


def landscape_view(result: LandscapeResult) -> LandscapeView:
    """What the report is given."""
    groups = [(group, heading) for group, heading in _GROUPS.items() if group in result.points[0].rates]
    return LandscapeView(
        result=result,
        question=_question(result),
        caption=_caption(result),
        panels=[_panel(result, group, heading) for group, heading in groups],
        map=_map(result),
        basins=[*_basins(result)],
        groups=groups,
        points=[(_point_name(result, point), point) for point in result.points],
        facts=[(_name(direction), _fact(direction)) for direction in result.directions],
    )


def landscape_table(result: LandscapeResult) -> Table:
    """One row per direction, for the terminal: the basin, and the harmful rate at both ends of the grid."""
    table = Table(box=None, pad_edge=False)
    table.add_column("direction", overflow="fold")
    for heading in ("basin", "width", "narrowest to widest", "mean safety", "harmful rate at the ends"):
        table.add_column(heading, justify="right")
    for row, direction in zip(_basins(result), result.directions, strict=True):
        curve = result.curve(direction.name)
        ends = [f"{amount(value)}: {rate_text(point.rates[HARMFUL])}" for value, point in (curve[0], curve[-1])]
        basin = row.basin
        safety = "" if basin.safety is None else f"{basin.safety:.2f}"
        span = f"{basin.narrowest:.2f} to {basin.widest:.2f}"
        table.add_row(row.label, row.reach, width(basin), span, safety, Text("\n".join(ends)))
    return table


def _question(result: LandscapeResult) -> str:
    tuned = any(direction.kind == "tuned" for direction in result.directions)
    random = sum(direction.kind == "random" for direction in result.directions)
    along = ["the direction from its base to it"]
    along += ["the direction from it to the fine-tuned model"] if tuned else []
    subject = f"{random} random directions" if random > 1 else "a random direction"
    along += [f"{subject} as long as the first in every weight matrix and every expert"] if random else []
    return (
        f"The model's weights were moved along {', and along '.join(along)}; at every amount the moved model answered "
        "the same held-out requests, and then the weights were put back to the last bit. A rate is a share of the "
        "replies that could be judged."
    )


def _caption(result: LandscapeResult) -> str:
    tuned = any(direction.kind == "tuned" for direction in result.directions)
    marks = "Along the aligned direction −1 is the base"
    marks += "; along that of the fine-tuning +1 is the fine-tuned model" if tuned else ""
    return f"Amount 0 is the model as it is. {marks}. The dotted line is the threshold; gaps are broken models."


def _panel(result: LandscapeResult, group: str, heading: str) -> CurvePanel:
    curves = []
    for direction in result.directions:
        rates = [(value, point.rate(group, result.most_unscored)) for value, point in result.curve(direction.name)]
        curves.append(Curve(_name(direction), direction.kind, rates))
    return CurvePanel(heading, curves, limit=result.threshold if group == HARMFUL else None)


def _map(result: LandscapeResult) -> RateMap | None:
    if result.plane is None:
        return None
    points, (first, second) = result.map(), result.plane
    # Amounts of the curves that the map does not have lie on its axes alone.
    xs, ys = (sorted({0.0, *(place[axis] for place in points if 0.0 not in place)}) for axis in (0, 1))
    rates = [[points[x, y].rate(HARMFUL, result.most_unscored) for x in xs] for y in ys]
    names = [_name(result.direction(name)) for name in (first, second)]
    return RateMap(names[0], names[1], xs, ys, rates, result.threshold)


def _basins(result: LandscapeResult) -> Iterator[BasinRow]:
    for basin in result.basins:
        direction = result.direction(basin.direction)
        yield BasinRow(_name(direction), reach(basin), basin, direction.norm)


def _name(direction: LandscapeDirection) -> str:
    if direction.kind == "random":
        return f"random direction {direction.name.rpartition('-')[2]}"
    return {"aligned": "aligned direction", "tuned": "fine-tuning direction"}[direction.kind]


def _point_name(result: LandscapeResult, point: LandscapePoint) -> str:
    if not point.amounts:
        return "model as it is"
    name = ", ".join(f"{_name(result.direction(name))} {amount(value)}" for name, value in point.amounts.items())
    return name if point.realised is None or point.realised > _EXACT else f"{name} ({point.realised:.0%} of it made)"


def _fact(direction: LandscapeDirection) -> str:
    changed = counted(direction.tensors, "tensor changes", "tensors change")
    return f"{changed}, norm {direction.norm:.4g}; from {direction.source[:_SHOWN]}"
