"""Charts of steering: by layer and position, effect by routing difference, effect by side effect."""

from __future__ import annotations

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.methods.steer.claim import expert_name
from seawall.methods.steer.figures import effect_of, expert_effects
from seawall.report.steering import LayerGrid, Point, Scatter

_MARKS = 400
_FAMILIES = {
    "expert": "single expert",
    "random_expert": "expert below the threshold",
    "layer": "direction of a layer",
    "several": "several experts",
}


def layer_grid(found: SteeringResult, directions: Directions) -> LayerGrid:
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


def routing_scatter(found: SteeringResult, directions: Directions) -> Scatter:
    """Each expert's best effect within the cap by its routing difference, in points."""
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
        title=f"Effect of {len(points)} experts by their routing difference. {routing_note(found)}",
        x="routing difference, points",
        y="refusal score, change",
        series={name: _FAMILIES[name] for name in ("expert", "random_expert")},
        points=points,
    )


def routing_note(found: SteeringResult) -> str:
    """What the marks of the routing chart are, with the rank correlation."""
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


def side_effect_scatter(found: SteeringResult) -> Scatter:
    """Settings with both numbers: all that were judged, and the strongest of the others.

    Where refusal is induced, a layer's numbers are of taking its direction away, so they are not shown beside those of
    experts, whose direction is added.
    """
    several = found.mode == "induce" and any(one.experts for one in found.candidates)
    shown_of = [one for one in found.candidates if one.experts or not several]
    measured = [(one, effect_of(found, one)) for one in shown_of if one.harmless_kl is not None]
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


def _mark_name(one: SteeringCandidate) -> str:
    how = f"{one.coefficient:g}\u00d7" if one.experts else "ablated"
    return f"{candidate_name(one)}, token \u2212{-one.position}, {how}"


def candidate_name(one: SteeringCandidate) -> str:
    """`decoder layer 3`, or the name of the experts."""
    return f"decoder layer {one.layer}" if not one.experts else expert_name(one)


def _with_interval(figure: AuditFigure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]".replace("-", "\u2212")
