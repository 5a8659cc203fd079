"""Whether a merged adapter is the adapter, measured by the adapter's own effect.

Two figures: the difference between the logits of the merged model and of the model with the adapter attached, as a
share of what the adapter changes; and the share of the update that survives the rounding of the weights, along itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import ArtifactError, UnsupportedModelError

MIN_SURVIVAL, MAX_EFFECT_ERROR = 0.8, 0.75
"""The bounds of a faithful merge, for every merge of an adapter.

A 16-bit sum W + dW keeps a share of dW along itself and adds rounding noise across it. In tiny bfloat16 models (Llama,
OLMoE, Mixtral; ranks 2 and 8) merges that keep .06 to .42 of the update miss .59 to 1.03 of its effect: the adapter is
gone. Those that keep .92 or more miss .03 to .54, the noise of narrow matrices, which has no direction. So survival
judges the rounding. The effect judges the merge: nothing merged, another layer or another sign misses 1 or more.
"""
_OTHER_BASE = ("pissa_niter_", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA after which the adapter is trained on other weights than the model's: a factorisation that is
random or needs data is taken from them, and loading takes another one. Those of `pissa` and `olora` are exact."""
_ARITHMETIC = {torch.float32: 1e-3, torch.float64: 1e-3}
_ARITHMETIC_16 = 0.1
"""Difference of logits, relative to their spread, that the arithmetic of a type alone may cause."""
_NO_EFFECT = 1e-5
"""Changes of logits below this share of their spread are arithmetic, and no effect."""


@dataclass(frozen=True, slots=True)
class MergeFidelity:
    """How much of an adapter a merged model has.

    Attributes:
        effect_error: distance between the logits of the merged model and of the adapted one, over the distance between
            those of the adapted model and of the model without the adapter; 0 is exact, 1 is a lost adapter.
        survival: <realised, intended> / ||intended||^2 of the update in the stored weights; 1 is exact, 0 is lost.
    """

    effect_error: float
    survival: float

    @property
    def survives(self) -> bool:
        """Whether the rounded weights hold the update, neither lost nor multiplied."""
        return abs(self.survival - 1.0) <= 1.0 - MIN_SURVIVAL

    @property
    def faithful(self) -> bool:
        """Whether both figures are within their bounds; false for NaN."""
        return self.survives and self.effect_error <= MAX_EFFECT_ERROR

    def __str__(self) -> str:
        """Both figures, for people."""
        return (
            f"the merged logits miss {self.effect_error:.1%} of the update's effect, and {self.survival:.1%} of the "
            "update survives rounding"
        )


EXPECTED = f"at most {MAX_EFFECT_ERROR:.0%} missed, and {MIN_SURVIVAL:.0%} surviving"
"""The bounds, for messages."""


class LostInRoundingError(UnsupportedModelError):
    """The type of the weights is too coarse for an adapter's update."""


def require_known_base(settings: Mapping[str, Any], folder: Path) -> None:
    """Refuses an adapter on weights that its initialisation made, where loading would make others.

    Args:
        settings: the adapter's configuration.
        folder: the adapter's folder, for messages.

    Raises:
        UnsupportedModelError: it is one.
    """
    initialisation = str(settings.get("init_lora_weights"))
    if initialisation.startswith(_OTHER_BASE):
        raise UnsupportedModelError(
            f"the adapter in {folder} belongs to weights that cannot be computed again",
            got=f"init_lora_weights {initialisation}, which takes from the weights what it draws or measures",
            expected="LoRA on the weights of its model",
            remedy="save it with PEFT's path_initial_model_for_weight_conversion, or merge it where it was trained",
        )


def require_own_weights(wrapped: Any, folder: Path) -> None:
    """Refuses an adapter on one of two tied weights: attached it changes one of them, merged it would change both."""
    base_layer = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    owners: dict[int, set[str]] = {}
    for name, parameter in wrapped.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), set()).add(name)
    adapted = {name: module for name, module in wrapped.named_modules() if isinstance(module, base_layer)}
    for name, module in adapted.items():
        weight = vars(module.get_base_layer()).get("_parameters", {}).get("weight")
        if weight is not None and len(owners[weight.data_ptr()]) > 1:
            raise UnsupportedModelError(
                f"the adapter in {folder} changes a weight that the model uses twice (tied embeddings)",
                got=f"LoRA on {name.removeprefix('base_model.model.')}",
                expected="an adapter of layers with weights of their own",
                remedy="merge the adapter into a copy of the model with tie_word_embeddings=false, and name that copy",
            )


def require_survival(wrapped: Any, folder: Path) -> float:
    """The share of an attached adapter's update, along itself, that is left once it is added to 16-bit weights.

    Args:
        wrapped: PEFT's model with the adapter attached, not merged.
        folder: the adapter's folder, for messages.

    Raises:
        LostInRoundingError: the share is out of bounds.
    """
    share = survival(_rounded_changes(wrapped))
    if not MergeFidelity(0.0, share).survives:
        raise LostInRoundingError(
            f"merging the adapter in {folder} would lose it: its updates are smaller than the steps of the weights",
            got=f"{share:.0%} of the update left after rounding to {_half_type(wrapped)}",
            expected=f"at least {MIN_SURVIVAL:.0%}",
            remedy="load the model in float32 (model.dtype=float32), or keep the adapter apart",
        )
    return share


def probed_effect(wrapped: Any, folder: Path) -> tuple[Tensor, Tensor]:
    """`probe_logits` of PEFT's model with the adapter attached, and without it.

    Args:
        wrapped: PEFT's model with the adapter attached, not merged.
        folder: the adapter's folder, for messages.

    Raises:
        ArtifactError: the adapter changes nothing, so that numbers of the adapted model would be the base model's.
    """
    adapted = probe_logits(wrapped)
    with wrapped.disable_adapter():
        plain = probe_logits(wrapped)
    # Equal logits alone are no proof: a single expert may be outside the probes' routes.
    if torch.equal(adapted, plain) and not any(update.any() for _, update in _updates(wrapped)):
        untrained = any(scaling for scaling, _ in _updates(wrapped))
        raise ArtifactError(
            f"the adapter in {folder} changes nothing: with it, the base model would be measured under its name",
            got="factors of zeros in every layer, as before training" if untrained else "lora_alpha 0",
            expected="a trained adapter",
            remedy="restore its files, or name the model without the adapter",
        )
    return adapted, plain


@torch.no_grad()
def _updates(wrapped: Any) -> Iterator[tuple[float, Tensor]]:
    """The scaling and the update of every LoRA layer of an active adapter."""
    layer = importlib.import_module("peft.tuners.lora.layer").LoraLayer
    for module in wrapped.modules():
        for name in module.active_adapters if isinstance(module, layer) else ():
            if name in module.scaling:
                yield module.scaling[name], module.get_delta_weight(name)


@torch.no_grad()
def survival(changes: Iterable[tuple[Tensor, Tensor]]) -> float:
    """<realised, intended> / ||intended||^2 over pairs of realised and intended changes of weights; 1 without any."""
    along = total = 0.0
    for realised, intended in changes:
        along += float((realised.double() * intended.double()).sum())
        total += float(intended.double().square().sum())
    return along / total if total else 1.0


def _rounded_changes(wrapped: Any) -> Iterable[tuple[Tensor, Tensor]]:
    """Pairs (realised, intended) of every plain LoRA update on 16-bit weights, one matrix or expert at a time."""
    layers = importlib.import_module("peft.tuners.lora.layer")
    for module in wrapped.modules():
        if not isinstance(module, (layers.Linear, layers.ParamWrapper)):
            continue
        by_parameter = isinstance(module, layers.ParamWrapper)
        weight = module.get_param() if by_parameter else module.get_base_layer().weight
        adapters = [name for name in module.active_adapters if name in module.lora_A]
        if weight.dtype not in (torch.bfloat16, torch.float16) or _is_variant(module, adapters):
            continue
        for adapter in adapters:
            change = module.get_delta_weight(adapter).detach()
            pairs = zip(weight, change, strict=True) if weight.ndim == 3 else [(weight, change)]
            for own, intended in pairs:
                exact = own.detach().float() + intended.float()
                yield exact.to(own.dtype).float() - own.detach().float(), intended.float()


def _is_variant(module: Any, adapters: Sequence[str]) -> bool:
    """Whether the update is no plain product, such as DoRA's; the logits alone tell then."""
    variants = getattr(module, "lora_variant", {})
    return any(name in variants for name in adapters)


def _half_type(wrapped: Any) -> str:
    return str(wrapped.get_base_model().dtype).removeprefix("torch.")


def require_same_logits(merged: PreTrainedModel, adapted: Tensor, plain: Tensor, folder: Path) -> None:
    """Compares a merged model with the model with the adapter attached, relative to what the adapter changes.

    A difference that the arithmetic of the model's type explains passes; what rounding the weights loses is told by
    `require_survival`.

    Args:
        merged: the model after the merge.
        adapted: `probe_logits` before it, with the adapter.
        plain: `probe_logits` without the adapter.
        folder: the adapter's folder, for messages.

    Raises:
        UnsupportedModelError: the merged model is another one.
    """
    logits = probe_logits(merged)
    error = effect_error(logits, adapted, plain)
    if error <= MAX_EFFECT_ERROR:
        return
    if not relative_difference(logits, adapted) <= _ARITHMETIC.get(merged.dtype, _ARITHMETIC_16):
        raise UnsupportedModelError(
            f"the adapter in {folder} merged into the model gives another model than the adapter attached",
            got=f"logits that miss {error:.0%} of the adapter's effect on two prompts",
            expected=f"at most {MAX_EFFECT_ERROR:.0%}, or a difference that rounding explains",
            remedy="merge the adapter with PEFT, check the result, and name the merged checkpoint instead",
        )


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits (positions, V) in float32 of two fixed token sequences, in evaluation mode."""
    size = min(model.get_input_embeddings().weight.shape[0], 997)
    rows = [[(step * index * index + 3 * index + 5) % size for index in range(12)] for step in (7, 11)]
    modules = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        device = model.get_input_embeddings().weight.device
        return torch.cat([model(input_ids=torch.tensor([row], device=device)).logits[0].float() for row in rows])
    finally:
        for module, training in modules:
            module.training = training


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """The size of a difference of logits (positions, V), relative to their spread: the median over positions.

    A median, because in 16 bits rounding may send a single token to another expert.
    """
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
    return float(((logits - expected).norm(dim=-1) / spread).median())


def effect_error(merged: Tensor, adapted: Tensor, plain: Tensor) -> float:
    """The logits (positions, V) that a merge misses, as a share of what the adapter changes.

    The median of ||merged - adapted|| / ||adapted - plain|| over the half of the positions with the largest effect: at
    the others an adapter may do nothing, and rounding may send a single token to another expert.
    """
    effect = (adapted - plain).norm(dim=-1)
    strongest = effect.topk((len(effect) + 1) // 2).indices
    spread = (plain - plain.mean(-1, keepdim=True)).norm(dim=-1)
    floor = (_NO_EFFECT * spread[strongest]).clamp(min=1e-12)
    missed = (merged - adapted).norm(dim=-1)[strongest]
    return float((missed / effect[strongest].maximum(floor)).median())
