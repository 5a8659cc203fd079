"""The refusal score (arXiv 2606.04160): log-odds that the first token of a reply opens a refusal.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.errors import ConfigError, DataError

TEMPERATURE = 0.7


def refusal_tokens(
    first_tokens: Sequence[int], refused: Sequence[bool], *, share: float = 0.05, override: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The tokens that open the model's refusals, most frequent first.

    Args:
        first_tokens: first token of the model's reply to each plain harmful prompt.
        refused: whether the judge's verdict on that reply is a refusal.
        share: smallest share of the refusals that a token opens; the most frequent token is always included.
        override: tokens to use instead.

    Raises:
        DataError: the model refuses none of the prompts.
        ConfigError: the override is empty.
    """
    if override is not None:
        if not override:
            raise ConfigError(
                "the refusal tokens are empty", expected="one token at least", remedy="leave them out to derive them"
            )
        return tuple(dict.fromkeys(override))
    opened = Counter(token for token, is_refusal in zip(first_tokens, refused, strict=True) if is_refusal)
    if not opened:
        raise DataError(
            "the model refuses no plain harmful prompt, so there is no refusal to steer",
            got=f"0 refusals of {len(first_tokens)} replies",
            expected="a model that refuses",
            remedy="use other harmful prompts, or name the tokens that open refusals (steer.refusal_tokens)",
        )
    ranked = sorted(opened, key=lambda token: (-opened[token], token))
    return tuple(token for rank, token in enumerate(ranked) if rank == 0 or opened[token] >= share * opened.total())


def refusal_score(
    logits_BV: Float[Tensor, "B V"], token_ids: Sequence[int], *, temperature: float = TEMPERATURE
) -> Float[Tensor, " B"]:
    """`log P - log(1 - P)` in float64, P the probability mass of the tokens, softmax temperature 0.7.

    Computed as the difference of two logsumexp, over the tokens and over all others, which stays exact where P rounds
    to 0 or 1.

    Raises:
        ConfigError: a token outside the vocabulary, no token, or all tokens.
    """
    vocabulary = logits_BV.shape[-1]
    is_refusal_V = torch.zeros(vocabulary, dtype=torch.bool, device=logits_BV.device)
    wrong = [token for token in token_ids if not 0 <= token < vocabulary]
    if wrong or not 0 < len(set(token_ids)) < vocabulary:
        raise ConfigError(
            "these refusal tokens cannot be scored",
            got=f"token {wrong[0]}" if wrong else f"{len(set(token_ids))} tokens",
            expected=f"some but not all of 0 to {vocabulary - 1}",
            remedy="name token ids of this model (steer.refusal_tokens)",
        )
    is_refusal_V[list(token_ids)] = True
    scaled_BV = logits_BV.double() / temperature
    return scaled_BV[:, is_refusal_V].logsumexp(-1) - scaled_BV[:, ~is_refusal_V].logsumexp(-1)


def divergence(original_BV: Float[Tensor, "B V"], changed_BV: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
    """`KL(original || changed)` of the next token in nats, from logits; NaN where `changed` is NaN.

    Tokens with probability 0 in the original model contribute 0.
    """
    original_BV, changed_BV = original_BV.float().log_softmax(-1), changed_BV.float().log_softmax(-1)
    possible_BV = original_BV > -torch.inf
    terms_BV = original_BV.exp() * (original_BV - changed_BV)
    return torch.where(possible_BV, terms_BV, 0).sum(-1).double()
