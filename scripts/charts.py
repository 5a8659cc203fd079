"""Draws docs/charts/NAME.svg from docs/data/NAME.csv, with the standard library alone.

    python scripts/charts.py            # every chart
    python scripts/charts.py --check    # exit code 1 where a chart is not what its CSV gives

A column with `low` and `high` beside it has an interval. Columns of `TOGETHER` share one panel; else every numeric
column is a panel of its own, with one row per line of the CSV.
"""

import csv
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
LABELS = ("seeds", "steps", "updates", "expert updates", "after epoch")
"""Numeric columns that say what a row is."""
TOGETHER = {
    "main-job": ("before", "after"),
    "asft-weight": ("AsFT, harmful rate, %", "L2, harmful rate, %"),
}
ROW, PANEL, GAP, TOP, CHARACTER, LONGEST = 18, 118, 22, 46, 6.1, 70
COLOURS = ("#1f6f8b", "#c2571a", "#5b7f2b", "#8a4f9e")
STYLE = """
text { font: 11px sans-serif; fill: #222 } .axis { stroke: #bbb } .row { fill: #f3f3f3 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .axis { stroke: #666 } .row { fill: #262626 } }
"""


@dataclass(frozen=True)
class Column:
    """One metric: values with the ends of their intervals, None where a row has none."""

    name: str
    values: list[float | None]
    lows: list[float | None]
    highs: list[float | None]

    def extent(self) -> tuple[float, float]:
        """The panel's axis: from 0, to 1 or 100 for rates, further where a value or interval lies further."""
        numbers = [number for part in (self.values, self.lows, self.highs) for number in part if number is not None]
        low, high = min([0.0, *numbers]), max([0.0, *numbers])
        percent = 100.0 if 30 < high <= 100 else high
        top = percent if "%" in self.name else max(1.0, high)
        return low, top if top > low else low + 1


def read(path: Path) -> tuple[list[str], list[Column]]:
    """The rows' labels and the columns to draw."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = list(rows[0])
    first, texts = names[0], [name for name in LABELS if name in names[1:] and name != "seeds"]
    labels = [" ".join([row[first], *(f"({row[name]} {name})" for name in texts if row[name])]) for row in rows]
    columns = []
    for name in names[1:]:
        if name in LABELS or name.endswith((" low", " high", " note")):
            continue
        parts = [[number(row.get(key, "")) for row in rows] for key in (name, f"{name} low", f"{name} high")]
        if any(value is not None for value in parts[0]):
            columns.append(Column(name, *parts))
    return labels, columns


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def draw(path: Path) -> str:
    """The chart of one CSV file."""
    labels, columns = read(path)
    together = TOGETHER.get(path.stem)
    panels = [[column] for column in columns]
    if together:
        panels = [[column for column in columns if column.name in together]]
    width = 3 * PANEL if together else PANEL
    left = 16 + CHARACTER * max(min(len(label), LONGEST) for label in labels)
    size = (left + len(panels) * (width + GAP) + 8, TOP + ROW * len(labels) + 20)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]}" role="img">',
        f"<title>{escape(path.stem)}</title><style>{STYLE}</style>",
    ]
    for index, label in enumerate(labels):
        top = TOP + ROW * index
        if index % 2 == 0:
            parts.append(f'<rect class="row" x="0" y="{top}" width="{size[0]:.0f}" height="{ROW}"/>')
        shown = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
        parts.append(f'<text x="8" y="{top + 13}">{escape(shown)}</text>')
    for index, panel in enumerate(panels):
        parts += draw_panel(panel, left + index * (width + GAP), width, len(labels))
    return "\n".join([*parts, "</svg>", ""])


def draw_panel(columns: list[Column], left: float, width: float, rows: int) -> list[str]:
    """Points with their intervals, the axis below, the names above."""
    low = min(column.extent()[0] for column in columns)
    high = max(column.extent()[1] for column in columns)
    bottom = TOP + ROW * rows

    def across(value: float) -> str:
        return f"{left + width * (value - low) / (high - low):.1f}"

    parts = [
        f'<line class="axis" x1="{across(end)}" x2="{across(end)}" y1="{TOP}" y2="{bottom}"/>'
        f'<text x="{across(end)}" y="{bottom + 14}" text-anchor="middle">{end:g}</text>'
        for end in sorted({low, 0.0, high})
    ]
    for number_, column in enumerate(columns):
        colour = COLOURS[number_ % len(COLOURS)]
        for line, text in enumerate(split(column.name, width) if len(columns) == 1 else [column.name]):
            top = 16 + 13 * (line if len(columns) == 1 else number_)
            dot = "" if len(columns) == 1 else f'<circle cx="{left:.1f}" cy="{top - 4}" r="4" fill="{colour}"/>'
            parts.append(f'{dot}<text x="{left + (8 if dot else 0):.1f}" y="{top}">{escape(text)}</text>')
        shift = 3 * (number_ - (len(columns) - 1) / 2)
        for row, (value, start, end) in enumerate(zip(column.values, column.lows, column.highs, strict=True)):
            if value is None:
                continue
            middle = TOP + ROW * row + ROW / 2 + shift
            if start is not None and end is not None:
                parts.append(
                    f'<line x1="{across(start)}" x2="{across(end)}" y1="{middle}" y2="{middle}" stroke="{colour}"/>'
                )
            parts.append(f'<circle cx="{across(value)}" cy="{middle}" r="3.4" fill="{colour}"/>')
    return parts


def split(name: str, width: float) -> list[str]:
    """A panel's name in at most two lines."""
    lines = [""]
    for word in name.replace("_", " ").split():
        if lines[-1] and CHARACTER * (len(lines[-1]) + 1 + len(word)) > width + GAP - 4:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [*lines[:1], " ".join(lines[1:])] if len(lines) > 1 else lines


def main() -> None:
    stale = []
    for path in sorted((DOCS / "data").glob("*.csv")):
        chart, target = draw(path), DOCS / "charts" / f"{path.stem}.svg"
        if "--check" not in sys.argv:
            target.write_text(chart, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != chart:
            stale.append(target.name)
    if stale:
        sys.exit(f"make these anew with scripts/charts.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()
