"""The calibration sample of a cut: training prompts with the dense model's own replies, and the networks' inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.data import BuiltinSource
from seawall.data.sources import load_benign, load_borderline, load_goals
from seawall.data.splits import split
from seawall.data.types import Messages, user
from seawall.models.generate import TokenIds, generate

REPLY_TOKENS = 32
_BATCH = 32


def calibration_prompts(seed: int) -> list[Messages]:
    """The training prompts shipped with the package, harmful, borderline and benign ones mixed."""
    source = BuiltinSource()
    kinds = (load_goals(source), load_borderline(source), load_benign(source))
    prompts = [user(row.text) for kind in kinds for row in split(kind).train]
    random.Random(seed).shuffle(prompts)
    return prompts


def own_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    tokens: int,
    progress: Callable[[int], None],
) -> list[TokenIds]:
    """Prompts with the model's greedy replies, as token ids, until they hold `tokens` tokens or the prompts end."""
    conversations: list[TokenIds] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        for reply in generate(model, tokenizer, batch, max_new_tokens=REPLY_TOKENS, batch_size=_BATCH):
            conversations.append((reply.prompt_ids + reply.token_ids)[: tokens - sum(map(len, conversations))])
        progress(sum(map(len, conversations)))
        if sum(map(len, conversations)) >= tokens:
            break
    return [ids for ids in conversations if ids]


@torch.inference_mode()
def mlp_inputs(model: PreTrainedModel, conversations: Sequence[TokenIds], first: int) -> dict[int, Tensor]:
    """Inputs (T, D) of the feed-forward networks from layer `first` on, in float32 on the CPU, by layer."""
    inputs: dict[int, list[Tensor]] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: inputs.setdefault(layer, []).append(arguments[0][0].float().cpu())

    layers = model.get_decoder().layers
    hooks = [layers[index].mlp.register_forward_pre_hook(keep(index)) for index in range(first, len(layers))]
    try:
        for ids in conversations:
            model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: torch.cat(parts) for layer, parts in inputs.items()}
