"""Where refusal lies, by the controls: attention, routed experts, a single one, the shared expert, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.directions import Directions
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.methods.steer.conditions import RANDOM, SHARED, WITHOUT_LOGITS
from seawall.methods.steer.held_out import ORIGINAL

Seat = Literal["nowhere", "unspecific", "decoy", "attention", "expert", "routed", "shared", "mlp", "undecided"]
"""Where refusal lies; `expert` is a single routed one, `mlp` the MLP or MoE as a whole."""
VERDICTS: Mapping[Seat, str] = {
    "nowhere": "no direction of a layer clearly ends refusal, so nothing is said of where refusal lies",
    "unspecific": "a random direction of the same length does as much, so nothing is said of where refusal lies",
    "decoy": "the direction is a decoy: it moves the logits of the refusal tokens, and without its component along "
    "them nothing clear of its effect is left, so it does not show where refusal is decided",
    "attention": "attention writes the refusal",
    "expert": "a single routed expert writes the refusal",
    "routed": "the routed experts write the refusal, and no single one clearly does",
    "shared": "the shared expert writes the refusal, not the routed ones",
    "mlp": "the MLP or MoE writes the refusal",
    "undecided": "neither attention nor the MLP or MoE clearly writes more of the refusal than the other",
}
_LAYER, _RANDOM_DIRECTION = "layer", "random-direction-"
_ATTENTION, _MLP, _ROUTED, _SHARED = "ablated-attention", "ablated-mlp", "ablated-routed", "ablated-shared"
_ABLATIONS: Mapping[Seat, str] = {"attention": _ATTENTION, "mlp": _MLP, "routed": _ROUTED, "shared": _SHARED}
_MOST = 0.5
"""Share of the layer's effect from which a part is said to write the refusal without reserve."""
SINGLES = ("expert", "expert-constrained")


def verdict(result: SteeringResult, directions: Directions) -> str:
    """The verdict in words, with the expert's name where it is one."""
    seat = seat_of(result, directions)
    if seat != "expert":
        return f"{VERDICTS[seat]}{_in_part(result, seat)}"
    choices = [result.choice(name.replace("-", "_")) for name in SINGLES if beats_controls(result, name)]
    names = dict.fromkeys(expert_name(choice) for choice in choices if choice is not None)
    return f"{VERDICTS[seat]}: {' or '.join(names)}"


def _in_part(result: SteeringResult, seat: Seat) -> str:
    """Says so where the ablation from what the seat writes takes less than half of what the layer's direction takes."""
    ablated = None if seat not in _ABLATIONS else _change(result, _ABLATIONS[seat], ORIGINAL)
    layer = _change(result, _LAYER, ORIGINAL)
    if ablated is None or layer is None or not layer.difference:
        return ""
    share = ablated.difference / layer.difference
    return "" if share >= _MOST else f", but only {share:.0%} of what the direction moves is lost by its ablation there"


def seat_of(result: SteeringResult, directions: Directions) -> Seat:
    """Where refusal lies. Every step needs a clear paired difference on held-out prompts.

    Args:
        result: with conditions, in mode `suppress`.
        directions: of the model; without experts' directions nothing is said of experts.
    """
    # 1. The layer's direction ends refusal, and random ones of its length clearly do less.
    layer = _change(result, _LAYER, ORIGINAL)
    if layer is None or not layer.falls:
        return "nowhere"
    if random_is_as_strong(result):
        return "unspecific"
    # 2. Something of the effect is left without the component along the refusal tokens' logits.
    remainder = _change(result, WITHOUT_LOGITS, ORIGINAL)
    if remainder is not None and not remainder.falls:
        return "decoy"
    # 3. Ablated from what one half writes, the direction ends refusal, and clearly more than from the other.
    half = _clearer(result, _ATTENTION, _MLP)
    if half == _ATTENTION:
        return "attention"
    if half is None:
        return "undecided"
    if not directions.candidates:
        return "mlp"
    # 4. The same of the routed and the shared part of the MoE block; without a shared expert all of it is routed.
    part = _clearer(result, _ROUTED, _SHARED) if directions.shared_LPD is not None else _ROUTED
    if part is None:
        return "mlp"
    if part == _SHARED:
        return "shared"
    # 5. A single expert moves refusal further than every control in its own place.
    return "expert" if any(beats_controls(result, name) for name in SINGLES) else "routed"


def own_controls(result: SteeringResult, name: str) -> list[str]:
    """The controls in a single expert's own place: random vectors, and the shared expert's direction."""
    return [condition.name for condition in result.conditions if is_own_control(condition.name, name)]


def is_own_control(control: str, name: str) -> bool:
    """Whether a condition of that name is a control in the place of the single expert `name`."""
    return control.startswith(f"{name}-{RANDOM}-") or control == f"{name}-{SHARED}"


def beats_controls(result: SteeringResult, name: str) -> bool:
    """Whether a single expert clearly ends refusal, and clearly further than every control in its own place."""
    effect = _change(result, name, ORIGINAL)
    apart = [_change(result, name, control) for control in own_controls(result, name)]
    return effect is not None and effect.falls and bool(apart) and all(change and change.falls for change in apart)


def random_is_as_strong(result: SteeringResult) -> bool:
    """Whether a random direction clearly lowers refusal, and not clearly less than the layer's direction."""
    names = [condition.name for condition in result.conditions if condition.name.startswith(_RANDOM_DIRECTION)]
    moved = [(_change(result, name, ORIGINAL), _change(result, name, _LAYER)) for name in names]
    return any(random and random.falls and not (apart and apart.rises) for random, apart in moved)


def expert_name(candidate: SteeringCandidate) -> str:
    """`MoE layer 3, expert 5`, or several of them; a whole layer by its number."""
    if candidate.family == "all_experts":
        return f"all experts of MoE layer {candidate.experts[0][0]}"
    return " with ".join(f"MoE layer {layer}, expert {expert}" for layer, expert in candidate.experts)


def _clearer(result: SteeringResult, first: str, second: str) -> str | None:
    """The condition of the two that clearly ends refusal, and clearly more than the other; None for neither."""
    effects = [_change(result, name, ORIGINAL) for name in (first, second)]
    apart = _change(result, first, second)
    if None in effects or apart is None:
        return None
    if effects[0] and effects[0].falls and apart.falls:
        return first
    return second if effects[1] and effects[1].falls and apart.rises else None


def _change(result: SteeringResult, condition: str, reference: str) -> AuditChange | None:
    return result.change(condition, reference, PLAIN)
