"""Probes of a served model: prompts that use the experts, and what the local weights compute for them.

Legend: P prompts, T tokens of a prompt with its reply, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.answers import NOT_A_NUMBER
from seawall.errors import UnsupportedModelError
from seawall.models.decoding import NOT_FINITE, TokenIds, context_length, decoding_for
from seawall.models.generate import Progress, greedy_batches
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel, find_moe_if_any
from seawall.models.sharding import is_sharded

ALTERNATIVES = 20
"""Most likely tokens of a reply's position whose log probabilities are kept."""
_RANDOM_TOKENS = 48
_ROWS = 16
"""Rows of a batch of replies. Rounding that depends on the batch can only exchange tokens that are equally likely."""

Expert = tuple[int, int]
"""(MoE layer, expert)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the local weights compute for one probe.

    Attributes:
        prompt: token ids.
        reply: the greedy reply, with its end token if the model wrote one.
        log_probabilities: of every token of prompt and reply but the first, in nats.
        alternatives: log probabilities of the most likely tokens at each position of the reply.
        experts: the experts that a token of prompt or reply is routed to; empty for a dense model.
        rounded: the log probabilities by weights and computations in bfloat16; empty where they are not computed.
    """

    prompt: TokenIds
    reply: TokenIds
    log_probabilities: tuple[float, ...]
    alternatives: tuple[dict[int, float], ...]
    experts: frozenset[Expert] = frozenset()
    rounded: tuple[float, ...] = ()

    @property
    def tokens(self) -> TokenIds:
        """Prompt and reply."""
        return self.prompt + self.reply


def random_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, *, new_tokens: int
) -> list[TokenIds]:
    """Prompts of pseudo-random tokens, equal in every call: they reach experts that ordinary text does not.

    Each ends with the last token of the vocabulary, which a server of a smaller vocabulary refuses.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    excluded = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(len(tokenizer), rows)) if token not in excluded]
    limit = context_length(model)
    length = _RANDOM_TOKENS if limit is None else max(1, min(_RANDOM_TOKENS, limit - new_tokens - 1))
    generator = random.Random(0)
    return [(*generator.choices(ordinary, k=length - 1), ordinary[-1]) for _ in range(count)]


def covering(used: Sequence[frozenset[Expert]], count: int, *, first: Sequence[int] = ()) -> list[int]:
    """Positions of `count` prompts that together use many experts: each adds the most experts that are new.

    Args:
        used: the experts of every prompt.
        count: number of positions.
        first: positions that are chosen already.
    """
    chosen = list(first)
    covered = frozenset[Expert]().union(*(used[position] for position in chosen))
    waiting = [position for position in range(len(used)) if position not in chosen]
    while waiting and len(chosen) < count:
        # The largest gain; the earliest of equals.
        position = max(waiting, key=lambda candidate: len(used[candidate] - covered))
        chosen.append(position)
        waiting.remove(position)
        covered |= used[position]
    return chosen


@torch.no_grad()
def experts_used(model: PreTrainedModel, prompts: Sequence[TokenIds]) -> list[frozenset[Expert]]:
    """The experts that the tokens of each prompt are routed to; empty sets for a dense model."""
    moe = find_moe_if_any(model)
    if moe is None:
        return [frozenset() for _ in prompts]
    results = []
    forward = model if is_sharded(model) else model.base_model  # only the whole of a sharded model gathers its parts
    for prompt in prompts:
        with capture(moe) as trace:
            forward(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
        results.append(_experts(trace))
    return results


@torch.no_grad()
def references(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenIds],
    *,
    new_tokens: int,
    progress: Progress,
) -> list[Reference]:
    """Greedy replies, and the log probabilities of all tokens by one forward pass over each prompt and its reply.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        prompts: token ids.
        new_tokens: maximum length of a reply.
        progress: called after every prompt.

    Raises:
        UnsupportedModelError: the model computes NaN or infinity.
    """
    moe = find_moe_if_any(model)
    decoding = decoding_for(model, tokenizer, new_tokens)
    replies: dict[int, TokenIds] = {}
    for positions, rows in greedy_batches(model, prompts, decoding, batch_size=_ROWS):
        replies.update(zip(positions, rows, strict=True))
    if any(row[-1] == NOT_FINITE for row in replies.values()):
        raise UnsupportedModelError(
            "the model's replies cannot be compared",
            got=NOT_A_NUMBER,
            expected="finite logits",
            remedy="load it in a type with a larger range (model.dtype=bfloat16 or float32), or check its weights",
        )
    results = []
    for position, prompt in enumerate(prompts):
        results.append(_reference(model, moe, prompt, replies[position]))
        progress(len(results), len(prompts))
    return results


@torch.no_grad()
def with_rounding(model: PreTrainedModel, results: Sequence[Reference]) -> list[Reference]:
    """The same with `rounded`: how far 16 bits alone move this model's numbers. Leaves the model in bfloat16."""
    model.to(torch.bfloat16)
    return [replace(result, rounded=log_probabilities(model, result.tokens)) for result in results]


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, tokens: TokenIds) -> tuple[float, ...]:
    """The log probability of every token of a sequence but the first, in nats."""
    log_TV = _log_softmax(_forward(model, None, tokens)[0])
    return tuple(_of_tokens(log_TV, tokens).tolist())


def _log_softmax(logits_TV: Tensor) -> Tensor:
    return torch.log_softmax(logits_TV[:-1].float(), dim=-1)


def _of_tokens(log_TV: Tensor, tokens: TokenIds) -> Tensor:
    """The log probability of every token but the first."""
    return log_TV.gather(1, torch.tensor(tokens[1:], device=log_TV.device)[:, None])[:, 0]


def release_memory() -> None:
    """Gives the memory of models that nothing refers to back to the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reference(model: PreTrainedModel, moe: MoEModel | None, prompt: TokenIds, reply: TokenIds) -> Reference:
    tokens = prompt + reply
    logits_TV, experts = _forward(model, moe, tokens)
    log_TV = _log_softmax(logits_TV)
    likely = log_TV[len(prompt) - 1 :].topk(min(ALTERNATIVES, log_TV.shape[1]), dim=-1)
    alternatives = tuple(
        dict(zip(ids, values, strict=True))
        for ids, values in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    )
    return Reference(prompt, reply, tuple(_of_tokens(log_TV, tokens).tolist()), alternatives, experts)


def _forward(model: PreTrainedModel, moe: MoEModel | None, tokens: TokenIds) -> tuple[Tensor, frozenset[Expert]]:
    """Logits (T, V) of a sequence, and the experts that its tokens are routed to."""
    ids_1T = torch.tensor([tokens], device=model.device)
    if moe is None:
        return model(input_ids=ids_1T, use_cache=False).logits[0], frozenset()
    with capture(moe) as trace:
        logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0]
    return logits_TV, _experts(trace)


def _experts(trace: RoutingTrace) -> frozenset[Expert]:
    """The experts that any token of a forward pass is routed to."""
    trace.require_complete()
    chosen = (torch.unique(indices_TK).tolist() for indices_TK in trace.indices)
    return frozenset((layer, int(expert)) for layer, experts in enumerate(chosen) for expert in experts)
