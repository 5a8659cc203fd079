"""Steering as the report and the terminal show it, in the reader's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions, PromptSide
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.evaluation.suite import BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.pipeline.audit_bench import POOLED
from seawall.pipeline.audit_tables import rate_text
from seawall.pipeline.headline import group_name
from seawall.pipeline.steer_claim import PAPER_CONSTRAINED, PAPER_FREE, expert_name
from seawall.pipeline.steer_figures import effect_of, expert_effects
from seawall.pipeline.steer_held_out import UNDER_SYSTEM
from seawall.report.inputs import AuditRow, AuditView, Interval
from seawall.report.steering import LayerGrid, Point, Scatter, ShareRow, SteeringView, TriedRow

_SHOWN, _TRIED, _MARKS = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED), 40, 400
_LABELS = {
    "original": "model as it is",
    "layer": "direction of a layer",
    "expert": "one expert, free",
    "expert-constrained": "one expert, layer's place",
    "all-experts": "all experts of a layer",
    "pair": "two experts",
    "triple": "three experts",
    "random-expert": "low-difference expert (control)",
    "ablated-attention": "ablated from attention",
    "ablated-mlp": "ablated from MLP or MoE",
    "ablated-both": "ablated from both",
    "ablated-everywhere": "ablated everywhere",
    "layer-attention": "at the layer's attention",
    "layer-mlp": "at the layer's MLP or MoE",
    "layer-both": "at both, half each",
    "repaired": "repaired model",
    "system": "safety prompt",
}
_TOP_K = "-top-k"
_SHARES: tuple[tuple[str, str, float | None], ...] = (
    ("expert", "one expert, free to choose its place", PAPER_FREE),
    ("expert-constrained", "one expert, in the layer's own place", PAPER_CONSTRAINED),
    ("pair", "two experts together", None),
    ("triple", "three experts together", None),
    ("all-experts", "all experts of a layer", None),
    ("random-expert", "an expert below the routing threshold (control)", None),
    (f"{UNDER_SYSTEM}expert", "under the safety prompt: one expert, free", None),
    (f"{UNDER_SYSTEM}expert-constrained", "under the safety prompt: one expert, in the layer's own place", None),
    ("ablated-attention", "ablated from attention alone, of ablated everywhere", None),
    ("ablated-mlp", "ablated from MLP or MoE alone, of ablated everywhere", None),
    ("ablated-both", "ablated from both, of ablated everywhere", None),
)
_FAMILIES = {
    "expert": "single expert",
    "random_expert": "expert below the threshold",
    "layer": "direction of a layer",
    "several": "several experts",
}


def steering_view(found: SteeringResult, directions: Directions, hardening: Hardening | None) -> SteeringView:
    """What the report is given."""
    return SteeringView(
        mode=found.mode,
        question=_question(found),
        claim=found.claim,
        facts=_facts(found, directions),
        grid=_grid(found, directions),
        conditions=_conditions(found),
        kls=[one.harmless_kl for one in found.conditions],
        side_effect=_side_effect(found),
        routing=_routing(found, directions) if directions.candidates else None,
        routing_note=_routing_note(found),
        shares=[*_shares(found)],
        tried=[*_tried(found)],
        hardening=_hardening(hardening),
    )


def steering_table(found: SteeringResult) -> Table:
    """One row per condition, for the terminal."""
    view = _conditions(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("condition", overflow="fold")
    for group in view.groups:
        table.add_column("attack success" if group == POOLED else group_name(group), justify="right")
    table.add_column("harmless KL", justify="right")
    for row, condition in zip(view.rows, found.conditions, strict=True):
        kl = "" if condition.harmless_kl is None else f"{condition.harmless_kl:.3f}"
        table.add_row(row.label, *(_shown(condition.rates.get(group)) for group in view.groups), kl)
    return table


def condition_name(name: str) -> str:
    """`system-expert` -> `safety prompt: one expert, free`."""
    if name.startswith(UNDER_SYSTEM):
        return f"safety prompt: {condition_name(name.removeprefix(UNDER_SYSTEM))}"
    if name.endswith(_TOP_K):
        return f"{condition_name(name.removesuffix(_TOP_K))}, top-k"
    if name.startswith("random-direction-"):
        return f"random direction {name.rpartition('-')[2]} (control)"
    return _LABELS.get(name, name)


def _question(found: SteeringResult) -> str:
    way = "taken away" if found.mode == "suppress" else "added"
    return (
        "Directions are mean differences between harmful and harmless prompts, of each layer's input and of each "
        "expert's output where that expert alone is chosen. They come from training prompts and were chosen on "
        f"validation prompts; then each was {way} on every token while the original model answered held-out prompts, "
        "the same ones in every condition. No weight is changed. As controls, random directions of the same length and "
        "experts whose routing does not differ went through the same."
    )


def _conditions(found: SteeringResult) -> AuditView:
    rows = [
        AuditRow(condition_name(one.name), one.series, None, {group: _interval(r) for group, r in one.rates.items()})
        for one in found.conditions
    ]
    return AuditView(
        audit="steering",
        title="Conditions of steering.",
        question="",
        claim=found.claim,
        groups=[group for group in _SHOWN if found.conditions and group in found.conditions[0].rates],
        rows=rows,
    )


def _grid(found: SteeringResult, directions: Directions) -> LayerGrid:
    """By layer and position, from the selection; of a layer at several coefficients the first, which was measured."""
    values: list[list[float | None]] = [[None] * len(directions.positions) for _ in range(directions.num_layers)]
    dropped: dict[tuple[int, int], str] = {}
    for one in found.of_family("layer"):
        at = (one.layer, directions.positions.index(one.position))
        if values[at[0]][at[1]] is None:
            values[at[0]][at[1]] = effect_of(found, one)
        if one.reason and not one.judged:
            dropped[at] = one.reason
    chosen = found.choice("layer")
    place = None if chosen is None else (chosen.layer, directions.positions.index(chosen.position))
    return LayerGrid(values, directions.positions, chosen=place, dropped=dropped)


def _routing(found: SteeringResult, directions: Directions) -> Scatter:
    effects = expert_effects(found, directions, max_kl=found.figures["max_kl"].value)
    drawn = {one.experts[0] for one in found.of_family("random_expert")}
    chosen = found.choice("expert")
    best = None if chosen is None else chosen.experts[0]
    points = [
        Point(
            label=f"MoE layer {place[0]}, expert {place[1]}",
            series="random_expert" if place in drawn else "expert",
            x=100 * directions.difference(place),
            y=effect,
            chosen=place == best,
        )
        for place, effect in effects.items()
    ]
    return Scatter(
        title=f"Effect of {len(points)} experts by their routing difference. {_routing_note(found)}",
        x="routing difference, points",
        y="refusal score, change",
        series={name: _FAMILIES[name] for name in ("expert", "random_expert")},
        points=points,
    )


def _routing_note(found: SteeringResult) -> str:
    rank = found.figures.get("rank_correlation")
    said = "Too few experts were within the cap for a rank correlation."
    if rank is not None:
        said = f"Spearman's rank correlation of the two is {_with_interval(rank)}."
    return (
        "Each mark is one expert that was tried at every position: how far it moves the mean refusal score on "
        "validation prompts at the best of its settings within the cap on harmless KL, by how differently harmful and "
        "harmless prompts are routed to it. "
        f"{said} The paper finds that routing differences do not predict which expert steers best."
    )


def _side_effect(found: SteeringResult) -> Scatter:
    """Settings with both numbers: all that were judged, and the strongest of the others."""
    measured = [(one, effect_of(found, one)) for one in found.candidates if one.harmless_kl is not None]
    limit = found.figures["max_kl"].value if "max_kl" in found.figures else None
    most = 3 * limit if limit is not None else float("inf")
    shown = [(one, effect) for one, effect in measured if effect is not None and (one.harmless_kl or 0.0) <= most]
    shown.sort(key=lambda pair: (-pair[0].judged, -abs(pair[1] or 0.0)))
    # Of a layer's direction both numbers are of its ablation, which takes no coefficient.
    picked = [found.candidates[at] for at in found.chosen.values()]
    chosen = {(one.family, _mark_name(one)) for one in picked}
    points = [
        Point(
            label=_mark_name(one),
            series=one.family if one.family in _FAMILIES else "several",
            x=one.harmless_kl or 0.0,
            y=effect or 0.0,
            chosen=(one.family, _mark_name(one)) in chosen,
        )
        for one, effect in shown[:_MARKS]
    ]
    there = {one.series for one in points}
    return Scatter(
        title=f"Effect of {len(points)} settings by their harmless divergence, in nats.",
        x="harmless KL, nats",
        y="refusal score, change",
        series=_FAMILIES if there - {"layer"} else {"layer": _FAMILIES["layer"]},
        points=points,
        limit=limit if there - {"layer"} else None,
    )


def _shares(found: SteeringResult) -> Iterator[ShareRow]:
    """The shares that were measured; nothing where no condition of that name is."""
    names = {one.name for one in found.conditions}
    for name, label, paper in _SHARES:
        if name in names:
            yield ShareRow(label, _share(found.figures.get(f"share:{name}")), paper)


def _tried(found: SteeringResult) -> Iterator[TriedRow]:
    """Chosen ones first, then those judged by their replies, then the best by their score."""
    names = {at: name.replace("_", " ") for name, at in found.chosen.items()}
    sign = 1 if found.mode == "suppress" else -1
    order = sorted(
        range(len(found.candidates)),
        key=lambda at: (
            at not in names,
            -found.candidates[at].judged,
            not found.candidates[at].kept,
            sign * (found.candidates[at].refusal_score or 0.0),
        ),
    )
    for at in order[:_TRIED]:
        one = found.candidates[at]
        chosen = f"chosen: {names[at]}" if at in names else ""
        yield TriedRow(
            label=_candidate_name(one),
            position=one.position,
            coefficient=f"{one.coefficient:g}",
            score=one.refusal_score,
            kl=one.harmless_kl,
            refused=one.refused,
            verdict="; ".join(part for part in (chosen, one.reason) if part) or "passed",
        )


def _candidate_name(one: SteeringCandidate) -> str:
    return f"decoder layer {one.layer}" if not one.experts else expert_name(one)


def _mark_name(one: SteeringCandidate) -> str:
    how = f"{one.coefficient:g}\u00d7" if one.experts else "ablated"
    return f"{_candidate_name(one)}, token \u2212{-one.position}, {how}"


def _facts(found: SteeringResult, directions: Directions) -> list[tuple[str, str]]:
    sides: tuple[PromptSide, ...] = ("harmful", "harmless")
    counts = {side: [directions.count(side, kept=kept) for kept in (True, False)] for side in sides}
    kept = " and ".join(f"{counts[side][0]} {side}" for side in sides)
    looked = " and ".join(str(sum(counts[side])) for side in sides)
    rows = [
        ("prompts for directions", f"{kept}, of {looked}; those whose refusal score has the right sign"),
        ("refusal tokens", ", ".join(map(str, directions.refusal_tokens))),
        ("settings tried", f"{len(found.candidates):,} ({_counts(Counter(one.family for one in found.candidates))})"),
        ("dropped", _counts(Counter(one.reason for one in found.candidates if not one.kept)) or "none"),
    ]
    cost, full = (found.figures.get(name) for name in ("search_cost", "search_full_cost"))
    if cost is not None and full is not None and cost.value:
        saved = f"{full.value / cost.value:.1f} times fewer decoder-layer passes than every setting on every prompt"
        rows.append(("search for experts", saved))
    return rows


def _counts(counts: Counter[str]) -> str:
    return "; ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in counts.most_common())


def _hardening(found: Hardening | None) -> str:
    if found is None:
        return ""
    cost = found.effects.get(BORDERLINE)
    said = "" if cost is None else f" Its cost: over-refusal from {cost.before.rate:.1%} to {cost.after.rate:.1%}."
    return (
        f"steer/hardening holds this direction times {found.coefficient:g}, for seawall.load(model, steering=...), "
        f"which adds it for as long as the model lives.{said}"
    )


def _share(figure: AuditFigure | None) -> Interval | None:
    if figure is None or figure.low is None or figure.high is None:
        return None
    return Interval(figure.value, figure.low, figure.high, 0)


def _with_interval(figure: AuditFigure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]".replace("-", "\u2212")


def _interval(rate: Rate) -> Interval:
    return Interval(rate.rate, rate.low, rate.high, rate.n, rate.unscored)


def _shown(rate: Rate | None) -> str:
    return "" if rate is None else rate_text(rate)
