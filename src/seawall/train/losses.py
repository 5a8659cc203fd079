"""The losses of the repair, as pure functions of tensors.

Legend: B rows, T tokens, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seawall.data.templating import IGNORED

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities of the plain request (..., E), of the attack (..., E)) -> divergence (...)."""


def response_cross_entropy(
    logits_BTV: Float[Tensor, "B T V"],
    labels_BT: Int[Tensor, "B T"],
    *,
    opening_tokens: int = 0,
    opening_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Weighted mean cross-entropy of each row's response tokens, in nats; positions labelled -100 are ignored.

    Args:
        logits_BTV: the model's output; position t predicts token t + 1.
        labels_BT: token ids on the response, -100 elsewhere.
        opening_tokens: number of first tokens of each response that weigh `opening_weight`; the others weigh 1.
        opening_weight: above 1 to emphasise the opening, which decides whether a reply refuses.
    """
    targets_BT = labels_BT[:, 1:]
    loss_BT = F.cross_entropy(
        logits_BTV[:, :-1].float().transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none"
    )
    return _response_mean(loss_BT, targets_BT != IGNORED, opening_tokens, opening_weight)


def response_divergence(
    logits_BTV: Float[Tensor, "B T V"],
    labels_BT: Int[Tensor, "B T"],
    tokens_BTK: Int[Tensor, "B T-1 K"],
    log_probability_BTK: Float[Tensor, "B T-1 K"],
    *,
    opening_tokens: int = 0,
    opening_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Weighted mean of KL(original || model) over each row's response, in nats.

    All tokens but the original's K likeliest are merged into one outcome. The divergence and its gradient are 0 where
    the model has not changed.

    Args:
        logits_BTV: the model's output; position t predicts token t + 1.
        labels_BT: token ids on the response, -100 elsewhere.
        tokens_BTK: the original model's K likeliest tokens for the positions 1 to T - 1.
        log_probability_BTK: their log-probabilities under the original model.
        opening_tokens: as in `response_cross_entropy`.
        opening_weight: as in `response_cross_entropy`.
    """
    log_q_BTK = logits_BTV[:, :-1].float().log_softmax(-1).gather(-1, tokens_BTK)
    loss_BT = _kl(log_probability_BTK, log_q_BTK)
    if tokens_BTK.shape[-1] < logits_BTV.shape[-1]:
        loss_BT = loss_BT + _kl(_log_remainder(log_probability_BTK), _log_remainder(log_q_BTK))
    return _response_mean(loss_BT, labels_BT[:, 1:] != IGNORED, opening_tokens, opening_weight)


def _log_remainder(log_probability_BTK: Tensor) -> Tensor:
    """Log-probability of all other tokens together (B, T, 1), with the probability at least float32's epsilon."""
    remainder_BT1 = 1 - log_probability_BTK.exp().sum(-1, keepdim=True)
    return remainder_BT1.clamp_min(torch.finfo(torch.float32).eps).log()


def _response_mean(loss_BT: Tensor, response_BT: Tensor, opening_tokens: int, opening_weight: float) -> Tensor:
    opening_BT = response_BT & (response_BT.cumsum(1) <= opening_tokens)
    weight_BT = torch.where(opening_BT, opening_weight, response_BT.float())
    masked_BT = torch.where(response_BT, loss_BT, 0.0)
    return (masked_BT * weight_BT).sum(1) / weight_BT.sum(1).clamp_min(torch.finfo(torch.float32).tiny)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _forward(plain: Tensor, attack: Tensor) -> Tensor:
    return _kl(plain, attack)


def _reverse(plain: Tensor, attack: Tensor) -> Tensor:
    return _kl(attack, plain)


def _symmetric(plain: Tensor, attack: Tensor) -> Tensor:
    return 0.5 * (_kl(plain, attack) + _kl(attack, plain))


DIVERGENCES: dict[str, Divergence] = {"forward": _forward, "reverse": _reverse, "symmetric": _symmetric}
"""The divergences of the router loss by their `direction` in recipes."""


def pairwise_router_loss(
    plain: Sequence[Float[Tensor, "B T E"]],
    attack: Sequence[Float[Tensor, "B U E"]],
    *,
    plain_mask_BT: Tensor,
    attack_mask_BU: Tensor,
    direction: str = "forward",
) -> Tensor:
    """Mean over MoE layers and pairs of the divergence between the mean routing of plain request and attack.

    A prompt's routing distribution is the mean over its own tokens of the probabilities by which the family routes;
    padding does not count, and each attack is compared with its own plain request. The plain request takes no gradient.

    Args:
        plain: routing probabilities of the plain requests' tokens (`RoutingRule.probabilities`), one tensor per MoE
            layer.
        attack: routing probabilities of the attacks, in the same order of pairs.
        plain_mask_BT: 1 for tokens, 0 for padding.
        attack_mask_BU: the same for the attacks.
        direction: `forward` is KL(plain || attack), RASA's equation; `reverse` and `symmetric` are variants.
    """
    divergence = DIVERGENCES[direction]
    losses = [
        divergence(_mean_routing(x, plain_mask_BT).detach().log(), _mean_routing(y, attack_mask_BU).log()).mean()
        for x, y in zip(plain, attack, strict=True)
    ]
    return _mean_over_layers(losses)


def _mean_over_layers(losses: Sequence[Tensor]) -> Tensor:
    """The mean of the layers' losses; layers may lie on several devices."""
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def _mean_routing(probability_BTE: Tensor, mask_BT: Tensor) -> Tensor:
    weight_BT1 = mask_BT.to(probability_BTE.device, torch.float32)[..., None]
    mean_BE = (probability_BTE * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1.0)
    return mean_BE.clamp_min(1e-9)


def reference_router_loss(
    plain: Sequence[Float[Tensor, "B T E"]],
    attack: Sequence[Float[Tensor, "B U E"]],
    *,
    direction: str = "forward",
) -> Tensor:
    """The router loss of the authors' code, kept to reproduce published numbers.

    Logits are averaged over all positions (padding included), softmaxed, and averaged over the batch; the divergence of
    the two batch means is divided by E and averaged over layers. It compares batches, not pairs.
    """
    divergence = DIVERGENCES[direction]
    losses = []
    for x_BTE, y_BUE in zip(plain, attack, strict=True):
        p_E = torch.softmax(x_BTE.double().mean(1), dim=-1).mean(0).detach()
        q_E = torch.softmax(y_BUE.double().mean(1), dim=-1).mean(0)
        losses.append(divergence(p_E.log(), q_E.log()) / x_BTE.shape[-1])
    return _mean_over_layers(losses)
