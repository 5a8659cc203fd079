"""Selection of safety-critical experts: RASA section 3.2 as an algorithm box."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.profile import ExpertProfile
from seawall.config.select import SelectConfig
from seawall.errors import ConfigError, NothingToRepairError
from seawall.methods.rasa.selection.controls import CONTROLS
from seawall.methods.rasa.selection.scores import (
    SCORES,
    LayerExpert,
    TokenKind,
    by_layer,
    count,
    gate_traffic,
    sensitivity_mean,
    top_positive,
    traffic,
)
from seawall.methods.rasa.selection.stability import bootstrap


def select(
    profile: ExpertProfile,
    config: SelectConfig,
    *,
    tokens: TokenKind = "generated",
    sensitivity_PLE: Float[Tensor, "P L E"] | None = None,
) -> ExpertSet:
    """The experts to repair: the top k with a positive score, or fewer if fewer are positive.

    Args:
        profile: routing counts of kept pairs.
        config: method, scope and size; a control has the size of the selection by `config.score`.
        tokens: the tokens whose routing is scored.
        sensitivity_PLE: of the profile's pairs (`refusal_sensitivity`), where `config.score` is `sensitivity`.

    Raises:
        ConfigError: `config.k` exceeds the number of routed experts; the score is `sensitivity`, which is not given.
        NothingToRepairError: no expert is used more by attacks than by plain requests.
    """
    num_pairs, num_layers, num_experts = profile.attack_counts_PLE.shape
    k = count(config.k, num_layers * num_experts)
    is_control = config.method in CONTROLS
    if config.score == "sensitivity" and sensitivity_PLE is None:
        raise ConfigError(
            "experts cannot be selected by sensitivity without the pairs' sensitivity",
            got="sensitivity_PLE=None",
            remedy="give that of the profile's pairs (refusal_sensitivity)",
        )
    # D[l, e] = P(e in top-K | attack) - P(e in top-K | plain request), or another score.
    gap = SCORES[config.score](profile, tokens) if sensitivity_PLE is None else sensitivity_mean(sensitivity_PLE)

    # The top k with D > 0: over all pairs, or the union over batches of pairs as in the authors' code.
    def choose(rows: Sequence[int]) -> set[LayerExpert]:
        size = config.batch_pairs if config.scope == "batch_union" else len(rows)
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        return {place for batch in batches for place in top_positive(gap(batch), k)}

    places = choose(range(num_pairs))
    if not places:
        raise _same_routing(num_pairs)
    stability = None
    if is_control:
        matched = gate_traffic if config.method == "traffic_matched" else traffic
        places = set(CONTROLS[config.method](places, matched(profile, tokens), config.seed))
    elif config.bootstrap:
        goals, shape = [pair.goal for pair in profile.pairs], (num_layers, num_experts)
        stability = bootstrap(choose, goals, resamples=config.bootstrap, seed=config.seed, shape=shape)
    return ExpertSet(
        model_fingerprint=profile.model_fingerprint,
        method=config.method,
        k=k,
        layers=by_layer(places, num_layers),
        scores_LE=gap(range(num_pairs)),
        stability=stability.jaccard if stability else None,
        inclusion_LE=stability.inclusion_LE if stability else None,
    )


def _same_routing(num_pairs: int) -> NothingToRepairError:
    return NothingToRepairError(
        "no expert is used more by the attacks than by the plain requests",
        got=f"{num_pairs} pairs with equal routing",
        remedy="use more pairs or other attack families",
    )
