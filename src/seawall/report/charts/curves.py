"""The repair over time: loss per update by phase, and validation rates by round, on one horizontal axis.

Phases have losses of different kinds (nats per token, divergence of routing), so each has a panel and a scale of its
own. The horizontal axis counts all updates in their order, so that the alternation is visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from seawall.report.svg import Scale, drawing, line, round_up, tag, text, ticks
from seawall.report.wording import percent, plain_name

_PARTS = ("refusal_loss", "retain_loss")
_POINTS = 400
"""Most points of a line; more updates become means of equal stretches."""
_PANEL, _GAP, _LEFT = 128.0, 50.0, 56.0
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One named line, in pieces: the other phase of each round interrupts a phase."""

    name: str
    pieces: tuple[tuple[Point, ...], ...]
    dotted: bool = False

    @property
    def points(self) -> list[Point]:
        """All its points."""
        return [point for piece in self.pieces for point in piece]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines that share a vertical axis; `is_rate` fixes it to 0..100 %."""

    title: str
    series: tuple[Series, ...]
    is_rate: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """The panels' common axis: number of updates, last update of each round, number of the chosen round."""

    length: int
    round_ends: tuple[int, ...]
    chosen: int


def timeline(updates: Sequence[Mapping[str, Any]], chosen: int) -> Timeline:
    """The rounds of the updates."""
    ends: dict[int, int] = {}
    for place, row in enumerate(updates, 1):
        ends[int(row["round"])] = place
    return Timeline(len(updates), tuple(ends[key] for key in sorted(ends)), chosen)


def panels(updates: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, float]], time: Timeline) -> list[Panel]:
    """One panel per phase in the order of their first update, then the validation rates."""
    panels = []
    for phase in dict.fromkeys(str(row["phase"]) for row in updates):
        parts = [part for part in _PARTS if any(row["phase"] == phase and part in row for row in updates)]
        lines = ("loss", *parts) if len(parts) > 1 else ("loss",)
        series = tuple(Series(plain_name(part), _pieces(updates, phase, part)) for part in lines)
        panels.append(Panel(f"{phase.capitalize()} step, loss per update", series))
    ends = (0, *time.round_ends)
    names = dict.fromkeys(name for row in rounds for name in row)
    at_ends = [*zip(ends, rounds, strict=False)]
    scores = tuple(
        Series(plain_name(name), (tuple((end, row[name]) for end, row in at_ends if name in row),), True)
        for name in names
    )
    return [*panels, Panel("Validation rates after each round", scores, is_rate=True)] if rounds else panels


def curves(panels: Sequence[Panel], time: Timeline, *, narrow: bool = False) -> Markup:
    """All panels, one below another."""
    full, right = (340.0, 92.0) if narrow else (880.0, 130.0)
    x = Scale(0, max(time.length, 1), _LEFT, full - right)
    height = 26 + len(panels) * (_PANEL + _GAP)
    parts = [*_rounds(time, x, height - 34)]
    for place, panel in enumerate(panels):
        parts += draw_panel(panel, x, 40 + place * (_PANEL + _GAP))
    parts += [text(x(tick), height - 16, f"{tick:g}", anchor="middle") for tick in ticks(x.high, 3 if narrow else 6)]
    parts.append(text(x.start, height - 1, "updates →"))
    label = "; ".join(panel.title for panel in panels) + f"; round {time.chosen} was kept; numbers in the table below"
    return drawing(full, height + 4, label, parts, class_=f"chart {'narrow' if narrow else 'wide'}")


def _pieces(updates: Sequence[Mapping[str, Any]], phase: str, part: str) -> tuple[tuple[Point, ...], ...]:
    by_round: dict[int, list[Point]] = {}
    for place, row in enumerate(updates, 1):
        if row["phase"] == phase and part in row:
            by_round.setdefault(int(row["round"]), []).append((float(place), float(row[part])))
    stride = -(-sum(map(len, by_round.values())) // _POINTS)
    return tuple(tuple(_thinned(points, stride)) for points in by_round.values())


def _thinned(points: Sequence[Point], stride: int) -> Iterable[Point]:
    """Means of `stride` neighbours."""
    for start in range(0, len(points), stride):
        part = points[start : start + stride]
        yield (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))


def _rounds(time: Timeline, x: Scale, bottom: float) -> Iterable[Markup]:
    start = 0
    for number, end in enumerate(time.round_ends, 1):
        is_chosen = number == time.chosen
        if is_chosen:
            yield tag("rect", x=x(start), y=0, width=x(end) - x(start), height=bottom, class_="kept")
        yield text((x(start) + x(end)) / 2, 14, _round_name(number, is_chosen, x(end) - x(start)), anchor="middle")
        yield line((x(end), 0), (x(end), bottom), "boundary")
        start = end


def _round_name(number: int, is_chosen: bool, width: float) -> str:
    if width > 110:
        return f"round {number}" + (" (kept)" if is_chosen else "")
    return f"{number} ✓" if is_chosen else str(number)


def draw_panel(panel: Panel, x: Scale, top: float) -> Iterable[Markup]:
    """A panel with its title at `top`, over an axis `x` that the caller labels."""
    values = [value for series in panel.series for _, value in series.points]
    largest = 1.0 if panel.is_rate else round_up(max(values, default=1.0))
    y = Scale(0, largest, top + 12 + _PANEL - 12, top + 12)
    yield text(x.start, top - 2, panel.title, "label")
    for tick in (0.0, largest / 2, largest):
        yield line((x.start, y(tick)), (x.end, y(tick)))
        yield text(x.start - 8, y(tick) + 4, percent(tick, 0) if panel.is_rate else f"{tick:.3g}", anchor="end")
    for place, series in enumerate(panel.series):
        yield from _line(series, f"s{place % 4}", x, y)
    yield from _names(panel, x, y)


def _line(series: Series, class_: str, x: Scale, y: Scale) -> Iterable[Markup]:
    for piece in series.pieces:
        points = [(x(step), y(value)) for step, value in piece]
        path = " ".join(f"{left:.1f},{height:.1f}" for left, height in points)
        yield tag("polyline", points=path, class_=f"line {class_}")
        if series.dotted or len(points) == 1:
            yield from (tag("circle", cx=left, cy=height, r=3.5, class_=f"dot {class_}") for left, height in points)


def _names(panel: Panel, x: Scale, y: Scale) -> Iterable[Markup]:
    """Each line's name at its right end, moved apart against overlaps."""
    ends = [(y(series.points[-1][1]), place) for place, series in enumerate(panel.series) if series.points]
    for height, place in spread(sorted(ends), 14.0, y.start):
        yield text(x.end + 10, height + 4, panel.series[place].name, f"name s{place % 4}")


def spread(places: Sequence[tuple[float, int]], gap: float, lowest: float) -> list[tuple[float, int]]:
    """Moves sorted labels down until they are `gap` apart, then up from `lowest` if they left the panel."""
    moved: list[tuple[float, int]] = []
    for height, key in places:
        moved.append((max(height, moved[-1][0] + gap) if moved else height, key))
    limit = lowest
    for index in range(len(moved) - 1, -1, -1):
        height, key = moved[index]
        moved[index] = (min(height, limit), key)
        limit = moved[index][0] - gap
    return moved
