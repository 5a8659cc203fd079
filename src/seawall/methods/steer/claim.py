"""What may be said of steering, from held-out prompts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, POOLED
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.methods.steer.conditions import LOGITS_ALONE, ROUTE_PRESERVING, SHARED, WITHOUT_LOGITS
from seawall.methods.steer.hardening import hardening_objection
from seawall.methods.steer.held_out import ORIGINAL, REPAIRED
from seawall.methods.steer.reasons import NOT_BEST
from seawall.methods.steer.verdict import beats_controls, expert_name, own_controls, random_is_as_strong, verdict
from seawall.report.changes import points, span

PAPER_FREE, PAPER_CONSTRAINED = 0.78, 0.54
"""Share of the layer-level effect that one expert recovers in the paper (arXiv 2606.04160): free to choose its place,
and constrained to the place of the layer's direction."""
_LARGE = 0.5
_LAYER, _STRENGTH, _EXPERT, _CONSTRAINED = "layer", "layer-strength", "expert", "expert-constrained"
_RANDOM, _RANDOM_EXPERT = "random-direction-", "random-expert"
_HALVES = ("ablated-attention", "ablated-mlp")


def claim(result: SteeringResult, directions: Directions) -> str:
    """Effect and side effect of the chosen layer direction, shares of experts, attention against MLP, controls."""
    sentences = _suppressed(result, directions) if result.mode == "suppress" else _induced(result)
    return " ".join(sentences)


def _suppressed(result: SteeringResult, directions: Directions) -> Iterator[str]:
    layer, change = result.choice(_LAYER), result.change(_LAYER, ORIGINAL, PLAIN)
    assert layer is not None
    assert change is not None
    stated = verdict(result, directions)
    yield f"{stated[0].upper()}{stated[1:]}."
    yield (
        f"Subtracting one direction (decoder layer {layer.layer}, {_token(layer)}) moved refusal of plain harmful "
        f"requests by {points(change)}, at a harmless KL of {_kl(result, _LAYER)} nats{_unscored(result, _LAYER)}."
    )
    cap = result.figures.get("layer_cap")
    if cap is not None and result.figures["layer_max_kl"].value < cap.value:
        yield (
            "On validation prompts no direction passed the checks with a harmless KL of its ablation within "
            f"{result.figures['layer_max_kl'].value:g} nats, so the cap was doubled until one did, at {cap.value:g}."
        )
    if change.difference > -_LARGE:
        candidates = result.of_family("layer")
        failed = Counter(candidate.reason for candidate in candidates if candidate.reason not in ("", NOT_BEST))
        reasons = "; ".join(f"{reason}: {count}" for reason, count in failed.most_common())
        yield (
            f"That is no fall by {100 * _LARGE:.0f} points: of {len(candidates)} directions {failed.total()} failed a "
            f"check{f' ({reasons})' if reasons else ''}, and this is the best of the others."
        )
    everywhere = result.change("ablated-everywhere", ORIGINAL, PLAIN)
    if everywhere is not None:
        yield f"Ablated from the whole model it moved refusal by {points(everywhere)}."
    yield from _experts(result, directions)
    yield from _halves(result)
    yield from _control(result, PLAIN, "refusal")
    yield from _decoy(result)


def _experts(result: SteeringResult, directions: Directions) -> Iterator[str]:
    if not directions.moe_layers:
        return
    if not directions.candidates:
        yield "There is no direction of an expert: the recipe leaves experts out."
        return
    for name, where, paper in (
        (_EXPERT, "free to choose its place", PAPER_FREE),
        (_CONSTRAINED, "in the layer's own place", PAPER_CONSTRAINED),
    ):
        chosen = result.choice(name.replace("-", "_"))
        if chosen is None:
            yield f"No single expert {where} passed the checks."
            continue
        share = result.figures.get(f"share:{name}")
        if share is not None:
            yield (
                f"One expert {where} ({expert_name(chosen)}) recovers {_share(share)} of that effect at a harmless KL "
                f"of {_kl(result, name)} nats{_unscored(result, name)}; the paper has {100 * paper:.0f} %."
            )
            yield from _against_controls(result, name, where)
    if not _layer_works(result):
        yield "Without a clear fall of refusal by the layer's direction, no share of it can be recovered."
    control = result.figures.get("share:random-expert")
    if control is not None:
        yield f"The best expert below the routing threshold, after the same search, recovers {_share(control)}."
    rank = result.figures.get("rank_correlation")
    if rank is not None and rank.low is not None and rank.high is not None:
        verdict = "predicts" if rank.is_positive else "does not clearly predict"
        interval = f"[{rank.low:.2f}, {rank.high:.2f}]".replace("-", "\u2212")
        yield f"Routing {verdict} which expert steers: rank correlation {rank.value:.2f} {interval}."


def _layer_works(result: SteeringResult) -> bool:
    """Whether the layer's direction clearly lowers the rate that it is to lower."""
    group = PLAIN if result.mode == "suppress" else POOLED
    change = result.change(_LAYER, ORIGINAL, group)
    return change is not None and change.falls


def _against_controls(result: SteeringResult, name: str, where: str) -> Iterator[str]:
    """The expert against what stands in its own place, against a control expert, and against the layer's direction."""
    controls = own_controls(result, name)
    random, shared = result.figures.get(f"random_vectors:{name}"), result.change(f"{name}-{SHARED}", ORIGINAL, PLAIN)
    parts = []
    if random is not None and random.low is not None and random.high is not None:
        count = sum(control != f"{name}-{SHARED}" for control in controls)
        moved = span(random.value, random.low, random.high)
        rates = [result.condition(control).rates[PLAIN] for control in controls if control != f"{name}-{SHARED}"]
        unscored = sum(rate.unscored for rate in rates)
        noted = f" ({unscored} of {sum(rate.n for rate in rates)} replies unscored)" if unscored else ""
        parts.append(f"{count} random vectors of its length moved refusal by {moved} points on average{noted}")
    if shared is not None:
        parts.append(f"the shared expert's direction, as long, by {points(shared)}")
    if parts:
        yield f"In that place and at that coefficient {', and '.join(parts)}."
    if controls and beats_controls(result, name):
        yield f"One expert {where} moves refusal further than each of these."
    elif controls:
        yield f"One expert {where} does not clearly move refusal further than each of these."
    apart = result.change(name, _RANDOM_EXPERT, PLAIN)
    if apart is not None and not apart.falls:
        yield f"One expert {where} does not clearly move refusal further than an expert below the routing threshold."
    layer = result.change(name, _STRENGTH, PLAIN)
    strength = result.choice("layer_strength")
    if layer is not None and strength is not None:
        verb = "less" if layer.rises else "further" if layer.falls else "not clearly more or less"
        yield (
            f"Against the layer's direction at the coefficient of the same search ({strength.coefficient:g}, "
            f"harmless KL {_kl(result, _STRENGTH)}), it moves refusal {verb}: {points(layer)}."
        )


def _decoy(result: SteeringResult) -> Iterator[str]:
    """The direction against that of the refusal tokens' logits."""
    remainder, logits = (result.change(name, ORIGINAL, PLAIN) for name in (WITHOUT_LOGITS, LOGITS_ALONE))
    figure = result.figures.get("logits_cosine")
    if remainder is None or logits is None or figure is None:
        return
    cosine = f"{figure.value:.2f}".replace("-", "\u2212")
    yield (
        f"The direction has a cosine of {cosine} with the one that moves the refusal tokens' logits through the output "
        f"layer alone. Without that component it moved refusal by {points(remainder)}; that one alone, as long, by "
        f"{points(logits)}."
    )


def _control(result: SteeringResult, group: str, measure: str) -> Iterator[str]:
    """Every random direction of the same norm against the layer's direction, which should lower the rate further."""
    names = [condition.name for condition in result.conditions if condition.name.startswith(_RANDOM)]
    moved = [(result.change(name, ORIGINAL, group), result.change(name, _LAYER, group)) for name in names]
    for random, apart in moved:
        if random is None or apart is None:
            continue
        yield f"A random direction of the same norm moved {measure} by {points(random)}."
        if not apart.rises:
            yield "That is not clearly less, so these numbers do not show that refusal lies in this direction."


def _halves(result: SteeringResult) -> Iterator[str]:
    """Ablation from the outputs of attention against ablation from the outputs of MLP or MoE."""
    attention, mlp = (result.change(name, ORIGINAL, PLAIN) for name in _HALVES)
    if attention is None or mlp is None:
        return
    yield (
        f"Ablated from attention outputs, the direction moved refusal by {points(attention)}; ablated from MLP or MoE "
        f"outputs, by {points(mlp)}."
    )
    apart = result.change(*_HALVES, PLAIN)
    if apart is None or random_is_as_strong(result):
        return
    if attention.falls and apart.falls:
        yield "Refusal rests more on attention than on the MLP or MoE here."
    elif mlp.falls and apart.rises:
        yield "Refusal rests more on the MLP or MoE than on attention here."


def _induced(result: SteeringResult) -> Iterator[str]:
    layer, attacks = result.choice(_LAYER), result.change(_LAYER, ORIGINAL, POOLED)
    assert layer is not None
    if attacks is None:
        return
    changes = [(name, result.change(_LAYER, ORIGINAL, group)) for name, group in _COSTS.items()]
    costs = ", ".join(f"{name} by {points(change)}" for name, change in changes if change is not None)
    yield (
        f"Adding {layer.coefficient:g} times one direction (decoder layer {layer.layer}, {_token(layer)}) moved attack "
        f"success by {points(attacks)}, and {costs}."
    )
    yield from _control(result, POOLED, "attack success")
    yield from _routes(result)
    problem = hardening_objection(result)
    if problem:
        yield f"No hardening is written: {problem}."
    repaired = result.change(REPAIRED, ORIGINAL, POOLED)
    against = [(name, result.change(REPAIRED, _LAYER, group)) for name, group in _AGAINST.items()]
    if repaired is not None:
        differences = ", ".join(f"{name} {points(change)}" for name, change in against if change is not None)
        yield f"The run's repair moved attack success by {points(repaired)}; repaired minus hardened: {differences}."


def _routes(result: SteeringResult) -> Iterator[str]:
    """The direction without what routers read of it: its effect, and how much of the routing stays."""
    change = result.change(ROUTE_PRESERVING, ORIGINAL, POOLED)
    figures = [result.figures.get(f"route_agreement:{name}") for name in (_LAYER, ROUTE_PRESERVING)]
    shares = [figure.value for figure in figures if figure is not None]
    if change is None or len(shares) < len(figures):
        return
    plain, preserving = (f"{100 * share:.1f} %" for share in shares)
    yield (
        f"It leaves {plain} of the tokens' choices of experts on harmless prompts as they were; without what the next "
        f"routers read of it {preserving}, and attack success moves by {points(change)}."
    )


_COSTS = {"refusal of plain harmful requests": PLAIN, "over-refusal": BORDERLINE, "benign compliance": BENIGN}
_AGAINST = {"attack success": POOLED, "over-refusal": BORDERLINE, "benign compliance": BENIGN}


def _token(candidate: SteeringCandidate) -> str:
    return f"token \u2212{-candidate.position} of the prompt"


def _kl(result: SteeringResult, name: str) -> str:
    kl = result.condition(name).harmless_kl
    return "unknown" if kl is None else f"{kl:.3f}" if kl < 1 else f"{kl:.2f}"


def _unscored(result: SteeringResult, name: str) -> str:
    """The number of unscored replies: degenerate text counts neither as refusal nor as compliance."""
    rate = result.condition(name).rates[PLAIN]
    return f" ({rate.unscored} of {rate.n} replies unscored)" if rate.unscored else ""


def _share(figure: AuditFigure) -> str:
    if figure.low is None or figure.high is None:
        return "an unknown share"
    share = f"{span(figure.value, figure.low, figure.high)} %"
    return share if figure.value >= 0 else f"nothing ({share})"
