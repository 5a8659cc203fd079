"""Refusal directions as differences in means (Arditi et al., arXiv 2406.11717), streamed over the prompts.

Legend: B rows, P token positions, D width, N decoder layers, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.directions import Directions, PromptSide, ScoredPrompt
from seawall.data.batching import Batch
from seawall.errors import DataError
from seawall.methods.steer.experts import expert_means
from seawall.methods.steer.logits import logits_direction
from seawall.methods.steer.score import refusal_score
from seawall.methods.steer.target import Prompt, TargetModel, last_logits, shared
from seawall.models.hidden.residual import capture_residual
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import model_of

Progress = Callable[[int, int], None]
SIDES: tuple[PromptSide, ...] = get_args(PromptSide)
_SIGN = {"harmful": 1, "harmless": -1}


def extract(
    target: TargetModel,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    *,
    positions: Sequence[int],
    experts: bool = True,
    progress: Progress | None = None,
) -> Directions:
    """The directions of every layer and every expert, from prompts whose refusal score has the right sign.

    r[l, p] = mean_harmful(x[l, p]) - mean_harmless(x[l, p]) at the input of block l; v_e likewise of the output of
    expert e alone, without gate weight and without the shared expert. One forward pass per prompt for scores, layers
    and routing, one more per prompt of the right sign for the experts, and one per harmful one for the logits.

    Args:
        target: the model.
        harmful: prompts that the model should refuse; used if their refusal score is above 0.
        harmless: prompts that the model should answer; used if it is below 0.
        positions: p, counted from the prompt's end, ascending.
        experts: whether to extract directions of experts, where the model has any.
        progress: called with the number of prompts run, and the total.

    Raises:
        DataError: a side has no prompts or none with the right sign, a position lies outside a prompt, or the model's
            logits are not finite.
        UnsupportedModelError: experts called alone are not those that the router chose.
    """
    sides: dict[PromptSide, Sequence[Prompt]] = {"harmful": harmful, "harmless": harmless}
    for side, prompts in sides.items():
        require_prompts(f"{side} prompts to extract directions from", prompts, positions)
    moe = target.moe if experts else None
    counter = _Counter(progress, (1 if moe is None else 2) * (len(harmful) + len(harmless)))
    means = {side: _Means.zeros(target, len(positions)) for side in sides}
    records = {}
    for side in SIDES:
        read = partial(_read, tokens=target.refusal_tokens, sign=_SIGN[side], positions=tuple(positions))
        records[side] = _scored(target, side, sides[side], read, means[side], counter)
    for side in SIDES:
        _require_counted(side, records[side])
    hidden_NPD, chosen_LE = means["harmful"].minus(means["harmless"])
    counted = {side: _counted(sides[side], records[side]) for side in SIDES}
    expert_CPD, shared_LPD = torch.zeros(0, *hidden_NPD.shape[1:]), None
    if moe is not None:
        counter.advance(sum(len(sides[side]) - len(counted[side]) for side in SIDES))
        of_side = {side: expert_means(target, moe, counted[side], positions, counter.advance) for side in SIDES}
        expert_CPD, shared_LPD = of_side["harmful"].minus(of_side["harmless"])
    return Directions(
        model_fingerprint=target.fingerprint,
        positions=tuple(positions),
        refusal_tokens=target.refusal_tokens,
        candidates=() if moe is None else tuple(divmod(index, moe.num_experts) for index in range(moe.total_experts)),
        moe_layers=() if target.moe is None else tuple(layer.decoder_layer for layer in target.moe.layers),
        prompts=(*records["harmful"], *records["harmless"]),
        layer_NPD=hidden_NPD.float(),
        expert_CPD=expert_CPD,
        routing_difference_LE=chosen_LE / len(positions),
        shared_LPD=shared_LPD,
        logits_D=logits_direction(target, counted["harmful"]),
        expert_part="routed",
    )


@dataclass(eq=False)
class _Counter:
    """Counts prompts and reports progress."""

    progress: Progress | None
    total: int
    count: int = 0

    def advance(self, prompts: int) -> None:
        """Adds `prompts` to the count."""
        self.count += prompts
        if self.progress is not None:
            self.progress(self.count, self.total)


def prompts_of_side(target: TargetModel, side: PromptSide, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose refusal score has the right sign.

    Raises:
        DataError: there is none, or the model's logits are not finite.
    """
    read = partial(_read, tokens=target.refusal_tokens, sign=_SIGN[side], positions=())
    records = _scored(target, side, prompts, read, _Means.zeros(target, 0), _Counter(None, 0))
    _require_counted(side, records)
    return _counted(prompts, records)


def require_prompts(what: str, prompts: Sequence[Prompt], positions: Sequence[int] = (-1,)) -> None:
    """Refuse an empty list of prompts, and positions before the start of a prompt.

    Raises:
        DataError: there is no prompt, or a position lies outside the shortest one.
    """
    if not prompts:
        raise DataError(f"there are no {what}", expected="prompts on both sides", remedy="check the recipe's data")
    shortest = min(prompts, key=lambda prompt: len(prompt.token_ids))
    if not all(-len(shortest.token_ids) <= position < 0 for position in positions):
        raise DataError(
            "a position lies outside the templated prompt",
            got=f"positions {', '.join(map(str, positions))}",
            expected=f"-{len(shortest.token_ids)} to -1, the tokens of the shortest prompt ({shortest.text[:40]!r})",
            remedy="change steer.positions",
        )


@dataclass(eq=False)
class _Means:
    """Float64 sums over prompts of the right sign, on the CPU: inputs of layers, and top-1 choices of routers."""

    hidden_NPD: Tensor
    chosen_LE: Tensor
    count: Tensor

    @classmethod
    def zeros(cls, target: TargetModel, positions: int) -> _Means:
        """Sums of no prompt."""
        moe, width = target.moe, int(target.model.config.get_text_config().hidden_size)
        experts = (0, 0) if moe is None else (moe.num_layers, moe.num_experts)
        shapes: tuple[tuple[int, ...], ...] = ((target.num_layers, positions, width), experts, ())
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, sums: _Means) -> None:
        """Adds the sums over further prompts."""
        self.hidden_NPD += sums.hidden_NPD
        self.chosen_LE += sums.chosen_LE
        self.count += sums.count

    def minus(self, subtrahend: _Means) -> tuple[Tensor, Tensor]:
        """Differences of the means."""
        pairs = ((self.hidden_NPD, subtrahend.hidden_NPD), (self.chosen_LE, subtrahend.chosen_LE))
        hidden_NPD, chosen_LE = (a / self.count - b / subtrahend.count for a, b in pairs)
        return hidden_NPD, chosen_LE


def _scored(
    target: TargetModel,
    side: PromptSide,
    prompts: Sequence[Prompt],
    read: Callable[[Any, Batch], tuple[list[float], _Means]],
    into: _Means,
    counter: _Counter,
) -> list[ScoredPrompt]:
    """The prompts with their refusal scores; the sums of the prompts with the right sign are added up in order."""
    scores: dict[int, float] = {}
    for places, (values, sums) in shared(target, prompts, read):
        scores |= zip(places, values, strict=True)
        into.add(sums)
        counter.advance(len(places))
    return [_record(side, prompt, scores[index]) for index, prompt in enumerate(prompts)]


def _counted(prompts: Sequence[Prompt], records: Sequence[ScoredPrompt]) -> list[Prompt]:
    return [prompt for prompt, record in zip(prompts, records, strict=True) if record.used]


def _read(
    subject: PreTrainedModel | MoEModel, batch: Batch, *, tokens: tuple[int, ...], sign: int, positions: tuple[int, ...]
) -> tuple[list[float], _Means]:
    """Refusal scores of a batch, and the sums over the rows whose score has the sign; scores alone without positions.

    Computed by any process of a launch.
    """
    model, moe = model_of(subject), subject if isinstance(subject, MoEModel) and positions else None
    routing = nullcontext(None) if moe is None else capture(moe)
    layers = None if positions else ()
    with capture_residual(model, layers) as residual, routing as trace:
        scores_B = refusal_score(last_logits(model, batch), tokens)
    weight_B = (sign * scores_B > 0).double()
    columns = [batch.input_ids_BT.shape[1] + position for position in positions]
    # Select rows instead of multiplying by 0: a row of the wrong sign may hold NaN.
    hidden = [
        hidden_BTD[:, columns].double()[weight_B.to(hidden_BTD.device) > 0].sum(0).cpu()
        for hidden_BTD in residual.inputs.values()
    ]
    chosen_LE = torch.zeros(()) if trace is None else _first_choices(trace, weight_B, columns).cpu()
    sums = _Means(torch.stack(hidden) if hidden else torch.zeros(()), chosen_LE, weight_B.sum().cpu())
    return [float(score) for score in scores_B.tolist()], sums


def _first_choices(trace: RoutingTrace, weight_B: Tensor, columns: Sequence[int]) -> Tensor:
    """Number of tokens whose largest gate weight is an expert's (L, E), in these columns of rows with weight 1."""
    trace.require_complete()
    counts_LE = torch.zeros(trace.num_layers, trace.num_experts, dtype=torch.float64, device=weight_B.device)
    for layer, (indices_TK, weights_TK) in enumerate(zip(trace.indices, trace.weights, strict=True)):
        first_T = indices_TK.gather(1, weights_TK.argmax(-1, keepdim=True))[:, 0].to(weight_B.device)
        first_BP = first_T.view(len(weight_B), -1)[:, list(columns)]
        counted_BPE = torch.nn.functional.one_hot(first_BP, trace.num_experts)
        counts_LE[layer] = torch.einsum("bpe,b->e", counted_BPE.double(), weight_B)
    return counts_LE


def _record(side: PromptSide, prompt: Prompt, score: float) -> ScoredPrompt:
    if not torch.isfinite(torch.tensor(score)):
        raise DataError(
            "the model's logits are not finite",
            got=f"{score} after the prompt {prompt.text[:40]!r}",
            remedy="load the model in bfloat16 or float32 (model.dtype)",
        )
    return ScoredPrompt(side, prompt.text, score, _SIGN[side] * score > 0)


def _require_counted(side: PromptSide, records: Sequence[ScoredPrompt]) -> None:
    if any(record.used for record in records):
        return
    scores = [record.score for record in records]
    harmful = side == "harmful"
    raise DataError(
        "no harmful prompt has a refusal to extract a direction from"
        if harmful
        else "the model refuses every harmless prompt, so there is no contrast to extract a direction from",
        got=f"refusal scores from {min(scores):.2f} to {max(scores):.2f} on {len(scores)} {side} prompts",
        expected=f"some {'above' if harmful else 'below'} 0",
        remedy="use other prompts, or name the tokens that open refusals (steer.refusal_tokens)",
    )
