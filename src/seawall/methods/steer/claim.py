"""What the numbers of steering allow one to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, POOLED
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.methods.steer.held_out import ORIGINAL, REPAIRED
from seawall.methods.steer.verdicts import NOT_BEST
from seawall.report.changes import points, span

PAPER_FREE, PAPER_CONSTRAINED = 0.78, 0.54
"""Share of the layer-level effect that one expert recovers in the paper (arXiv 2606.04160), free and constrained."""
_LARGE = 0.5
_LAYER, _EXPERT, _CONSTRAINED, _RANDOM = "layer", "expert", "expert-constrained", "random-direction-1"


def claim(found: SteeringResult, directions: Directions) -> str:
    """A few sentences, from held-out prompts alone."""
    said = _suppressed(found, directions) if found.mode == "suppress" else _induced(found)
    return " ".join(said)


def expert_name(candidate: SteeringCandidate) -> str:
    """`MoE layer 3, expert 5`, or several of them; a whole layer by its number."""
    if candidate.family == "all_experts":
        return f"all experts of MoE layer {candidate.experts[0][0]}"
    return " with ".join(f"MoE layer {layer}, expert {expert}" for layer, expert in candidate.experts)


def _suppressed(found: SteeringResult, directions: Directions) -> Iterator[str]:
    layer, change = found.choice(_LAYER), found.change(_LAYER, ORIGINAL, PLAIN)
    assert layer is not None
    assert change is not None
    yield (
        f"Taking one direction away (decoder layer {layer.layer}, {_token(layer)}) moved refusal of plain harmful "
        f"requests by {points(change)}, at a harmless KL of {_kl(found, _LAYER)} nats{_unscored(found, _LAYER)}."
    )
    cap = found.figures.get("layer_cap")
    if cap is not None and found.figures["layer_max_kl"].value < cap.value:
        yield (
            "On validation prompts no direction passed the checks with its ablation from the whole model within a "
            f"harmless KL of {found.figures['layer_max_kl'].value:g} nats, so the cap was doubled until one did, at "
            f"{cap.value:g}."
        )
    if abs(change.difference) < _LARGE:
        every = found.of_family("layer")
        failed = Counter(one.reason for one in every if one.reason not in ("", NOT_BEST))
        why = "; ".join(f"{reason}: {count}" for reason, count in failed.most_common())
        yield (
            f"That is less than {100 * _LARGE:.0f} points: of {len(every)} directions {failed.total()} failed a check"
            f"{f' ({why})' if why else ''}, and this is the best of the others."
        )
    everywhere = found.change("ablated-everywhere", ORIGINAL, PLAIN)
    if everywhere is not None:
        yield f"Taken out of the whole model it moved refusal by {points(everywhere)}."
    yield from _experts(found, directions)
    yield from _halves(found)
    yield from _control(found)


def _experts(found: SteeringResult, directions: Directions) -> Iterator[str]:
    if not directions.candidates:
        yield "There is no direction of an expert: the model is dense, or experts were left out."
        return
    for name, where, paper in (
        (_EXPERT, "free to choose its place", PAPER_FREE),
        (_CONSTRAINED, "in the layer's own place", PAPER_CONSTRAINED),
    ):
        chosen = found.choice(name.replace("-", "_"))
        if chosen is None:
            yield f"No single expert {where} passed the checks."
            continue
        share = found.figures.get(f"share:{name}")
        if share is not None:
            yield (
                f"One expert {where} ({expert_name(chosen)}) recovers {_share(share)} of that effect at a harmless KL "
                f"of {_kl(found, name)} nats{_unscored(found, name)}; the paper has {100 * paper:.0f} %."
            )
    control = found.figures.get("share:random-expert")
    if control is not None:
        yield f"The best expert below the routing threshold, after the same search, recovers {_share(control)}."
    rank = found.figures.get("rank_correlation")
    if rank is not None and rank.low is not None and rank.high is not None:
        verdict = "predicts" if rank.low > 0 else "does not clearly predict"
        interval = f"[{rank.low:.2f}, {rank.high:.2f}]".replace("-", "\u2212")
        yield f"Routing {verdict} which expert steers: rank correlation {rank.value:.2f} {interval}."


def _control(found: SteeringResult) -> Iterator[str]:
    random, less = found.change(_RANDOM, ORIGINAL, PLAIN), found.change(_RANDOM, _LAYER, PLAIN)
    if random is None or less is None:
        return
    yield f"A random direction of the same length moved it by {points(random)}."
    if not less.low > 0:
        yield "That is not clearly less, so nothing here shows that it is this direction that carries refusal."


def _halves(found: SteeringResult) -> Iterator[str]:
    """Which half of the layers writes what is taken away."""
    sides = [found.change(f"ablated-{name}", ORIGINAL, PLAIN) for name in ("attention", "mlp")]
    attention, mlp = sides
    if attention is None or mlp is None:
        return
    yield (
        f"Taken out of what attention writes, the direction moved refusal by {points(attention)}; out of what the MLP "
        f"or MoE writes, by {points(mlp)}."
    )
    if attention.high < mlp.low:
        yield "Refusal rests more on attention than on the MLP or MoE here."
    elif mlp.high < attention.low:
        yield "Refusal rests more on the MLP or MoE than on attention here."


def _induced(found: SteeringResult) -> Iterator[str]:
    layer, attacks = found.choice(_LAYER), found.change(_LAYER, ORIGINAL, POOLED)
    assert layer is not None
    if attacks is None:
        return
    cost = [(name, found.change(_LAYER, ORIGINAL, group)) for name, group in _COSTS.items()]
    said = ", ".join(f"{name} by {points(change)}" for name, change in cost if change is not None)
    yield (
        f"Adding {layer.coefficient:g} times one direction (decoder layer {layer.layer}, {_token(layer)}) moved attack "
        f"success by {points(attacks)}, and {said}."
    )
    if not attacks.high < 0:
        yield "Attack success did not clearly fall, so no hardening is left."
    repaired = found.change(REPAIRED, ORIGINAL, POOLED)
    against = [(name, found.change(REPAIRED, _LAYER, group)) for name, group in _AGAINST.items()]
    if repaired is not None:
        other = ", ".join(f"{name} {points(change)}" for name, change in against if change is not None)
        yield f"The run's repair moved attack success by {points(repaired)}; repaired minus hardened: {other}."


_COSTS = {"refusal of plain harmful requests": PLAIN, "over-refusal": BORDERLINE, "benign compliance": BENIGN}
_AGAINST = {"attack success": POOLED, "over-refusal": BORDERLINE, "benign compliance": BENIGN}


def _token(candidate: SteeringCandidate) -> str:
    return f"token \u2212{-candidate.position} of the prompt"


def _kl(found: SteeringResult, name: str) -> str:
    kl = found.condition(name).harmless_kl
    return "unknown" if kl is None else f"{kl:.3f}" if kl < 1 else f"{kl:.2f}"


def _unscored(found: SteeringResult, name: str) -> str:
    """Replies that are no language any more count neither way, which must not be overlooked."""
    rate = found.condition(name).rates[PLAIN]
    return f" ({rate.unscored} of {rate.n} replies unscored)" if rate.unscored else ""


def _share(figure: AuditFigure) -> str:
    if figure.low is None or figure.high is None:
        return "an unknown share"
    return f"{span(figure.value, figure.low, figure.high)} %"
