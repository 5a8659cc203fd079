"""`report.html`: one self-contained page, with a policy that lets nothing run but the script that we wrote."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall.report import charts, wording
from seawall.report.inputs import GroupRow, ReportInputs
from seawall.report.visible import visible, visible_markup


def environment() -> Environment:
    """Templates with escaping on and unknown names an error."""
    made = Environment(
        loader=PackageLoader("seawall.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "signed": wording.signed,
        "number": wording.number,
        "name": wording.group_name,
        "duration": wording.duration,
        "size": wording.size,
        "visible": visible,
        "untrusted": visible_markup,
    }
    return made


def render_report(inputs: ReportInputs) -> str:
    """The page, as text. Everything from a model or a prompt file is escaped and its hidden characters shown."""
    style, script = _asset("style.css"), _asset("script.js")
    updates = inputs.updates
    rates = ("attack_success", "plain_refusal", "over_refusal", "benign_refusal")
    by_round = {key: [(float(at), float(row[key])) for at, row in enumerate(inputs.rounds)] for key in rates}
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            inputs=inputs,
            summary=inputs.summary,
            headline=headline(inputs),
            style=Markup(style),
            script=Markup(script),
            policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'",
            dumbbells=charts.dumbbells(inputs.groups),
            heat_map=charts.heat_map(inputs.gaps, inputs.selected),
            expert_losses=charts.lines(
                charts.loss_series(updates, "expert", ("loss", "refusal_loss", "retain_loss")),
                "Loss of the expert step",
            ),
            router_losses=charts.lines(charts.loss_series(updates, "router", ("loss",)), "Loss of the router step"),
            round_scores=charts.lines(by_round if inputs.rounds else {}, "Validation rates by round", rate=True),
            drift=charts.bars(inputs.drift, "Routing drift by MoE layer"),
            selected_count=sum(len(layer) for layer in inputs.selected),
            verdict_changes=sorted({_change(row.verdict_before, row.verdict_after) for row in inputs.samples}),
            change=_change,
            recipe=json.dumps(inputs.recipe, indent=2),
            environment=json.dumps(inputs.manifest.get("environment", {}), indent=2),
            stages=inputs.manifest.get("stages", {}),
            claims=claims(inputs),
        )
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    return (resources.files("seawall.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def headline(inputs: ReportInputs) -> str:
    """The result in one sentence, with its price."""
    seen = [row for row in inputs.groups if row.is_attack and row.seen and row.after]
    unseen = [row for row in inputs.groups if row.is_attack and not row.seen and row.after]
    parts = []
    for name, rows in (("the attack families it trained on", seen), ("families it never saw", unseen)):
        if rows:
            before, after = (_mean([getattr(row, when).rate for row in rows]) for when in ("before", "after"))
            parts.append(f"attack success on {name} went from {before:.0%} to {after:.0%}")
    cost = next((row for row in inputs.groups if row.group == "borderline" and row.after), None)
    if cost is not None and cost.after is not None:
        parts.append(f"over-refusal from {cost.before.rate:.0%} to {cost.after.rate:.0%}")
    text = "; ".join(parts)
    return (text[:1].upper() + text[1:] + ".") if text else "The model was measured; no repair was evaluated."


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def claims(inputs: ReportInputs) -> list[str]:
    """What the numbers allow one to say, and what not."""
    found = []
    for row in inputs.groups:
        if row.after is None or row.change is None:
            continue
        sure = row.change.low > 0 or row.change.high < 0
        moved = f"{wording.group_name(row.group)} changed by {wording.points(row.change.rate)} points"
        span = f"95 % interval {wording.points(row.change.low)} to {wording.points(row.change.high)}"
        found.append(f"{moved} ({span})" + ("." if sure else ": no change can be claimed."))
    found.append(_judge_claim(inputs.groups))
    found.append(
        "The intervals speak of goals like the tested ones under the tested attack families. They say nothing about "
        "attacks that search for a weakness of this very model."
    )
    return found


def _judge_claim(groups: Any) -> str:
    rows: list[GroupRow] = list(groups)
    counted = Counter({"n": 0, "unscored": 0})
    for row in rows:
        for interval in (row.before, row.after):
            if interval is not None:
                counted.update(n=interval.n, unscored=interval.unscored)
    return (
        f"{counted['unscored']} of {counted['n']} replies were unscored (empty or degenerate) and count neither as "
        "refusals nor as successes. A keyword judge reads the opening of a reply, not the harm in it: a reply that "
        "complied may still be useless to an attacker."
    )
