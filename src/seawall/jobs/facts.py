"""Facts and plans as terminal tables, for `seawall doctor`, `plan` and `diff`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from seawall.models.plan.verdict import Plan, Verdict


def facts(rows: list[tuple[str, str]]) -> Table:
    """A table of (name, value) rows."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plan_facts(plan: Plan, verdict: Verdict) -> Table:
    """The table of `seawall plan`: stages, the terms of the largest moment, host, disk, time, and the verdict."""
    stage, moment = plan.largest
    rows = [(f"memory: {item.name}", _stage_text(plan, item.name)) for item in plan.stages]
    rows.append(("largest", f"{stage.name}, {moment.name}"))
    rows += [(f"  {name}", size(count)) for name, count in plan.terms(moment).items()]
    rows.append(("peak memory", size(plan.peak)))
    host = _sums([item.host for item in plan.stages])
    rows += [(f"host: {name}", size(count)) for name, count in host.items() if count]
    rows += [(f"disk: {name}", size(count)) for name, count in _sums([s.disk for s in plan.stages]).items() if count]
    rows.append(("disk", size(plan.disk)))
    if plan.seconds is not None:
        rows.append(("time, if every reply reaches its limit", duration(plan.seconds)))
    rows.append(("verdict", verdict.text))
    return facts(rows)


def _stage_text(plan: Plan, name: str) -> str:
    stage = next(item for item in plan.stages if item.name == name)
    time = plan.stage_seconds(stage)
    return size(plan.stage_peak(stage)) + ("" if time is None else f", {duration(time)}")


def _sums(terms: list[Mapping[str, int]]) -> dict[str, int]:
    """Sizes by name, over stages."""
    return {name: sum(item.get(name, 0) for item in terms) for item in terms for name in item}


def duration(seconds: float) -> str:
    """A time with its unit."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
