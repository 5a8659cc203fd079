"""Steering as terminal table and page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from seawall.artifacts.directions import Directions, PromptSide
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, POOLED, WRAPPED, group_name, rate_text
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.steering import SteeringResult
from seawall.methods.steer.charts import candidate_name, layer_grid, routing_note, routing_scatter, side_effect_scatter
from seawall.methods.steer.claim import PAPER_CONSTRAINED, PAPER_FREE
from seawall.methods.steer.conditions import RANDOM, SHARED
from seawall.methods.steer.held_out import UNDER_SYSTEM
from seawall.report.audits import AuditView
from seawall.report.steering import CandidateRow, ShareRow, SteeringView

_SHOWN, _TRIED = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED), 40
_LABELS = {
    "original": "model as it is",
    "layer": "direction of a layer",
    "layer-strength": "direction of a layer, searched like an expert",
    "layer-without-logits": "layer, without the refusal tokens' logits",
    "layer-route-preserving": "direction of a layer, routes preserved",
    "logits-direction": "direction of the refusal tokens' logits (control)",
    "expert": "one expert, free",
    "expert-constrained": "one expert, layer's place",
    "all-experts": "all experts of a layer",
    "pair": "two experts",
    "triple": "three experts",
    "random-expert": "low-difference expert (control)",
    "ablated-attention": "ablated from attention",
    "ablated-mlp": "ablated from MLP or MoE",
    "ablated-both": "ablated from both",
    "ablated-routed": "ablated from routed experts",
    "ablated-shared": "ablated from shared experts",
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
    ("layer-without-logits", "the layer's direction without the refusal tokens' logits", None),
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


def steering_view(result: SteeringResult, directions: Directions, hardening: Hardening | None) -> SteeringView:
    """What the report is given."""
    return SteeringView(
        result=result,
        question=_question(result, directions),
        facts=_facts(result, directions),
        grid=layer_grid(result, directions),
        conditions=_conditions(result),
        side_effect=side_effect_scatter(result),
        routing=routing_scatter(result, directions) if directions.candidates else None,
        routing_note=routing_note(result),
        shares=[*_shares(result)],
        candidates=[*_candidates(result)],
        hardening=_hardening(hardening),
    )


def steering_table(result: SteeringResult) -> Table:
    """One row per condition, for the terminal."""
    view = _conditions(result)
    table = Table(box=None, pad_edge=False)
    table.add_column("condition", overflow="fold")
    for group in view.groups:
        table.add_column("attack success" if group == POOLED else group_name(group), justify="right")
    table.add_column("harmless KL", justify="right")
    for condition in result.conditions:
        kl = "" if condition.harmless_kl is None else f"{condition.harmless_kl:.3f}"
        rates = (condition.rates.get(group) for group in view.groups)
        table.add_row(view.label(condition), *("" if rate is None else rate_text(rate) for rate in rates), kl)
    return table


def condition_name(name: str) -> str:
    """`system-expert` -> `safety prompt: one expert, free`."""
    if name.startswith(UNDER_SYSTEM):
        return f"safety prompt: {condition_name(name.removeprefix(UNDER_SYSTEM))}"
    if name.endswith(_TOP_K):
        return f"{condition_name(name.removesuffix(_TOP_K))}, top-k"
    if name.startswith("expert-") and f"-{RANDOM}-" in name:
        expert, _, number = name.rpartition(f"-{RANDOM}-")
        return f"{condition_name(expert)}: random vector {number} (control)"
    if name.startswith("expert-") and name.endswith(f"-{SHARED}"):
        return f"{condition_name(name.removesuffix(f'-{SHARED}'))}: shared expert's direction (control)"
    if name.startswith("random-direction-"):
        return f"random direction {name.rpartition('-')[2]} (control)"
    return _LABELS.get(name, name)


def _question(result: SteeringResult, directions: Directions) -> str:
    change = "subtracted" if result.mode == "suppress" else "added"
    experts, controls = "", "random directions of the same length"
    if directions.candidates:
        # Results of earlier versions are shown as they were measured.
        experts = f" and of each expert's {_OWN if directions.expert_part == 'routed' else _OF_BLOCK}"
        controls += " and experts whose routing does not differ"
    return (
        f"Directions are mean differences between harmful and harmless prompts, of each layer's input{experts}. They "
        f"come from training prompts and were chosen on validation prompts; then each was {change} on every token "
        "while the original model answered held-out prompts, the same ones in every condition. No weight is changed. "
        f"As controls, {controls} went through the same."
    )


_OWN = "own output, without its gate weight"
_OF_BLOCK = (
    "MoE block where that expert alone is chosen (an earlier version of seawall; where a family has a shared expert, "
    "that is nearly the shared expert's direction, so what is said of single experts here is withdrawn)"
)


def _conditions(result: SteeringResult) -> AuditView:
    return AuditView(
        audit="steering",
        title="Conditions of steering.",
        question="",
        claim=result.claim,
        groups=[group for group in _SHOWN if result.conditions and group in result.conditions[0].rates],
        conditions=result.conditions,
        labels={condition.name: condition_name(condition.name) for condition in result.conditions},
    )


def _shares(result: SteeringResult) -> Iterator[ShareRow]:
    """The shares that were measured; nothing where no condition of that name is."""
    names = {condition.name for condition in result.conditions}
    for name, label, paper in _SHARES:
        if name in names:
            figure = result.figures.get(f"share:{name}")
            yield ShareRow(label, None if figure is None or figure.low is None else figure, paper)


def _candidates(result: SteeringResult) -> Iterator[CandidateRow]:
    """The chosen candidates first, then those with judged replies, then the best by score."""
    names = {index: name.replace("_", " ") for name, index in result.chosen.items()}
    sign = 1 if result.mode == "suppress" else -1
    order = sorted(
        enumerate(result.candidates),
        key=lambda pair: (
            pair[0] not in names,
            -pair[1].judged,
            not pair[1].kept,
            sign * (pair[1].refusal_score or 0.0),
        ),
    )
    for index, candidate in order[:_TRIED]:
        chosen = f"chosen: {names[index]}" if index in names else ""
        outcome = "; ".join(part for part in (chosen, candidate.reason) if part) or "passed"
        yield CandidateRow(candidate_name(candidate), candidate, outcome)


def _facts(result: SteeringResult, directions: Directions) -> list[tuple[str, str]]:
    sides: tuple[PromptSide, ...] = ("harmful", "harmless")
    counts = {side: [directions.count(side, used=used) for used in (True, False)] for side in sides}
    counted = " and ".join(f"{counts[side][0]} {side}" for side in sides)
    looked = " and ".join(str(sum(counts[side])) for side in sides)
    rows = [
        ("prompts for directions", f"{counted}, of {looked}; those whose refusal score has the right sign"),
        ("refusal tokens", ", ".join(map(str, directions.refusal_tokens))),
        (
            "settings tried",
            f"{len(result.candidates):,} ({_counts(Counter(candidate.family for candidate in result.candidates))})",
        ),
        (
            "dropped",
            _counts(Counter(candidate.reason for candidate in result.candidates if not candidate.kept)) or "none",
        ),
    ]
    cost, full = (result.figures.get(name) for name in ("search_cost", "search_full_cost"))
    if cost is not None and full is not None and cost.value:
        saved = f"{full.value / cost.value:.1f} times fewer decoder-layer passes than every setting on every prompt"
        rows.append(("search for experts", saved))
    return rows


def _counts(counts: Counter[str]) -> str:
    return "; ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in counts.most_common())


def _hardening(artifact: Hardening | None) -> str:
    if artifact is None:
        return ""
    cost = artifact.effects.get(BORDERLINE)
    costs = "" if cost is None else f" Its cost: over-refusal from {cost.before.rate:.1%} to {cost.after.rate:.1%}."
    return (
        f"steer/hardening holds this direction times {artifact.coefficient:g}, for seawall.load(model, steering=...), "
        f"which adds it for as long as the model lives.{costs}"
    )
