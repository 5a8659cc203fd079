"""Fits a cut to a sample of the network's inputs, in closed form: neuron order, routers, and the shared expert's refit.

No gradient step is taken. Legend: T tokens, D model width, N neurons, R routed neurons, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seawall.lab.cut import LabShape, cut

REFIT_RANK = 12
_ITERATIONS = 8
_PROFILE_TOKENS = 3000
_ROUTER_RIDGE, _REFIT_RIDGE = 0.01, 0.003
_SCORE_SPREAD, _BIAS_SHARE = 0.5, 0.25


@dataclass(frozen=True, eq=False)
class FittedCut:
    """A feed-forward network cut into experts.

    Attributes:
        order: the neurons (N), most used first, then expert by expert.
        router: (E, D).
        bias: added to the scores when experts are chosen (E).
        weight: the projections, as `seawall.lab.cut.cut` gives them, with the refitted shared down projection.
    """

    order: Tensor
    router: Tensor
    bias: Tensor
    weight: dict[str, Tensor]


@torch.no_grad()
def fit_cut(weight: Mapping[str, Tensor], x_TD: Tensor, shape: LabShape, generator: torch.Generator) -> FittedCut:
    """Cuts a network by a sample of its inputs.

    Args:
        weight: the dense projections, `gate` and `up` (N, D) and `down` (D, N), in float32.
        x_TD: inputs of the network, on the device of the weights.
        shape: the split.
        generator: for the sample of tokens and the first centres of the clustering; on the CPU.
    """
    act_TN = F.silu(x_TD @ weight["gate"].T) * (x_TD @ weight["up"].T)
    order = order_neurons(act_TN.abs() * weight["down"].norm(dim=0), shape, generator)
    act_TN = act_TN[:, order]
    router, bias = fit_router(x_TD, act_TN, weight["down"][:, order], shape)
    split = cut(weight, order, shape)
    routed = split["down"][:, len(order) :]
    scale_TR = neuron_scale(x_TD, router, bias, shape, routed.shape[1])
    split["down"][:, : len(order)] += refit_down(act_TN, scale_TR, routed)
    return FittedCut(order, router, bias, split)


def order_neurons(use_TN: Tensor, shape: LabShape, generator: torch.Generator) -> Tensor:
    """Most used neurons first (the shared expert), the rest by balanced k-means of their activation profiles.

    Args:
        use_TN: absolute activation times the length of the neuron's down column, by token.
        shape: the split.
        generator: for the sample of tokens and the first centres; on the CPU.
    """
    order = use_TN.mean(0).argsort(descending=True)
    routed = order[shape.whole :]
    sample = torch.randperm(len(use_TN), generator=generator)[:_PROFILE_TOKENS].to(use_TN.device)
    profile = F.normalize(use_TN[sample][:, routed].T, dim=1)
    width = len(routed) // shape.experts
    centre = profile[torch.randperm(len(routed), generator=generator)[: shape.experts].to(use_TN.device)]
    for _ in range(_ITERATIONS):
        group = _balanced(profile @ centre.T, width).to(use_TN.device)
        centre = F.normalize(torch.stack([profile[group == expert].mean(0) for expert in range(shape.experts)]), dim=1)
    return torch.cat([order[: shape.whole], *[routed[group == expert] for expert in range(shape.experts)]])


def _balanced(similarity_RE: Tensor, width: int) -> Tensor:
    """The expert of every routed neuron: most similar pairs first, `width` neurons per expert."""
    neurons, experts = similarity_RE.shape
    group, room = [-1] * neurons, [width] * experts
    for place in similarity_RE.flatten().argsort(descending=True).tolist():
        neuron, expert = divmod(place, experts)
        if group[neuron] < 0 and room[expert]:
            group[neuron], room[expert] = expert, room[expert] - 1
    return torch.tensor(group)


def fit_router(x_TD: Tensor, act_TN: Tensor, down_DN: Tensor, shape: LabShape) -> tuple[Tensor, Tensor]:
    """Ridge regression from the input to each expert's output norm, scaled so that sigmoid weights stay even.

    Args:
        x_TD: inputs of the network.
        act_TN: activations of its neurons, in the order of the cut.
        down_DN: the down projection, in the same order.
        shape: the split.

    Returns:
        Router (E, D) and selection bias (E).
    """
    width = shape.expert_width(act_TN.shape[1])
    starts = range(shape.whole, act_TN.shape[1], width)
    norms = [(act_TN[:, start : start + width] @ down_DN[:, start : start + width].T).norm(dim=1) for start in starts]
    target_TE = torch.stack(norms, 1)
    centred_TD = x_TD - x_TD.mean(0)
    fit_DE = _ridge(centred_TD, target_TE - target_TE.mean(0), _ROUTER_RIDGE)[0]
    scale = _SCORE_SPREAD / target_TE.std()
    bias = _BIAS_SHARE * scale * (target_TE.mean(0) - target_TE.mean() - x_TD.mean(0) @ fit_DE)
    return (fit_DE * scale).T.contiguous(), bias


def neuron_scale(x: Tensor, router: Tensor, bias: Tensor, shape: LabShape, routed: int) -> Tensor:
    """The factor (..., R) of every routed neuron's output: its expert's gate weight, 0 where it is not chosen.

    Args:
        x: inputs of the network (..., D).
        router: (E, D).
        bias: added to the scores when experts are chosen (E).
        shape: the split.
        routed: R.
    """
    score = (x.float() @ router.T).sigmoid()
    top = (score + bias).topk(shape.top_k, dim=-1).indices
    weight = score.gather(-1, top)
    weight = weight / weight.sum(-1, keepdim=True) * shape.top_k
    per_expert = torch.zeros_like(score).scatter(-1, top, weight)
    return per_expert.repeat_interleave(routed // shape.experts, dim=-1)


def refit_down(act_TN: Tensor, scale_TR: Tensor, routed_DR: Tensor) -> Tensor:
    """What the shared expert's down projection (D, N) gains to make up for the experts left out.

    Reduced-rank regression of the missing output on all activations: the ridge solution, projected on the leading
    `REFIT_RANK` directions of its fitted values.

    Args:
        act_TN: activations, in the order of the cut; the last R are those of the routed neurons.
        scale_TR: factor of every routed neuron's output, see `neuron_scale`.
        routed_DR: the experts' down projections.
    """
    routed = routed_DR.shape[1]
    missing_TD = (act_TN[:, act_TN.shape[1] - routed :] * (1 - scale_TR)) @ routed_DR.T
    fit_ND, gram_NN = _ridge(act_TN, missing_TD, _REFIT_RIDGE)
    fitted_DN = fit_ND.T @ torch.linalg.cholesky(gram_NN)
    left_DK: Tensor = torch.linalg.svd(fitted_DN, full_matrices=False).U[:, :REFIT_RANK]
    return left_DK @ (left_DK.T @ fit_ND.T)


def _ridge(inputs_TN: Tensor, target_TD: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The ridge solution (N, D) and the regularised Gram matrix (N, N)."""
    gram = inputs_TN.T @ inputs_TN
    gram += strength * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram, inputs_TN.T @ target_TD), gram
