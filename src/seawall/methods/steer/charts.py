"""Charts of steering: effects by layer and position, by routing difference, and by harmless divergence."""

from __future__ import annotations

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.methods.steer.figures import effect_of, expert_effects
from seawall.methods.steer.verdict import expert_name
from seawall.report.steering import LayerGrid, Point, Scatter

_MARKS = 400
_FAMILIES = {
    "expert": "single expert",
    "random_expert": "expert below the threshold",
    "layer": "direction of a layer",
    "several": "several experts",
}
_SERIES_OF = {"layer_strength": "layer", **{name: name for name in ("expert", "random_expert", "layer")}}


def layer_grid(result: SteeringResult, directions: Directions) -> LayerGrid:
    """Effect by layer and position, from the selection. Of several coefficients of a layer the first was measured."""
    values: list[list[float | None]] = [[None] * len(directions.positions) for _ in range(directions.num_layers)]
    dropped: dict[tuple[int, int], str] = {}
    for candidate in result.of_family("layer"):
        cell = (candidate.layer, directions.positions.index(candidate.position))
        if values[cell[0]][cell[1]] is None:
            values[cell[0]][cell[1]] = effect_of(result, candidate)
        if candidate.reason and not candidate.judged:
            dropped[cell] = candidate.reason
    chosen = result.choice("layer")
    place = None if chosen is None else (chosen.layer, directions.positions.index(chosen.position))
    return LayerGrid(values, directions.positions, chosen=place, dropped=dropped)


def routing_scatter(result: SteeringResult, directions: Directions) -> Scatter:
    """Each expert's best effect within the cap, by its routing difference in points."""
    effects = expert_effects(result, directions, max_kl=result.figures["max_kl"].value)
    drawn = {candidate.experts[0] for candidate in result.of_family("random_expert")}
    chosen = result.choice("expert")
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
        title=f"Effect of {len(points)} experts by their routing difference. {routing_note(result)}",
        x="routing difference, points",
        y="refusal score, change",
        series={name: _FAMILIES[name] for name in ("expert", "random_expert")},
        points=points,
    )


def routing_note(result: SteeringResult) -> str:
    """The caption of the routing chart, with the rank correlation."""
    rank = result.figures.get("rank_correlation")
    correlation = "Too few experts were within the cap for a rank correlation."
    if rank is not None:
        correlation = f"Spearman's rank correlation of the two is {_with_interval(rank)}."
    return (
        "Each mark is one expert that was tried at every position: how far it moves the mean refusal score on "
        "validation prompts at the best of its settings within the cap on harmless KL, by how differently harmful and "
        "harmless prompts are routed to it. "
        f"{correlation} The paper finds that routing differences do not predict which expert steers best."
    )


def side_effect_scatter(result: SteeringResult) -> Scatter:
    """Candidates with both metrics: every judged candidate, and the strongest of the others.

    Where refusal is induced, a layer's metrics are of its ablation and an expert's of its addition, so layers are left
    out if there are experts.
    """
    several = result.mode == "induce" and any(candidate.experts for candidate in result.candidates)
    comparable = [candidate for candidate in result.candidates if candidate.family != "layer" or not several]
    measured = [
        (candidate, effect_of(result, candidate)) for candidate in comparable if candidate.harmless_kl is not None
    ]
    limit = result.figures["max_kl"].value if "max_kl" in result.figures else None
    largest = 3 * limit if limit is not None else float("inf")
    pairs = [
        (candidate, effect)
        for candidate, effect in measured
        if effect is not None and (candidate.harmless_kl or 0.0) <= largest
    ]
    pairs.sort(key=lambda pair: (-pair[0].judged, -abs(pair[1] or 0.0)))
    # Both metrics of a layer's direction are of its ablation, which has no coefficient.
    choices = [result.candidates[index] for index in result.chosen.values()]
    chosen = {(candidate.family, _mark_name(candidate)) for candidate in choices}
    points = [
        Point(
            label=_mark_name(candidate),
            series=_SERIES_OF.get(candidate.family, "several"),
            x=candidate.harmless_kl or 0.0,
            y=effect or 0.0,
            chosen=(candidate.family, _mark_name(candidate)) in chosen,
        )
        for candidate, effect in pairs[:_MARKS]
    ]
    series = {point.series for point in points}
    return Scatter(
        title=f"Effect of {len(points)} settings by their harmless divergence, in nats.",
        x="harmless KL, nats",
        y="refusal score, change",
        series=_FAMILIES if series - {"layer"} else {"layer": _FAMILIES["layer"]},
        points=points,
        limit=limit if series - {"layer"} else None,
    )


def _mark_name(candidate: SteeringCandidate) -> str:
    how = "ablated" if candidate.family == "layer" else f"{candidate.coefficient:g}\u00d7"
    return f"{candidate_name(candidate)}, token \u2212{-candidate.position}, {how}"


def candidate_name(candidate: SteeringCandidate) -> str:
    """`decoder layer 3`, or the name of the experts."""
    return f"decoder layer {candidate.layer}" if not candidate.experts else expert_name(candidate)


def _with_interval(figure: AuditFigure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]".replace("-", "\u2212")
