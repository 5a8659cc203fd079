"""The first pass over a batch of prompts of which some begin alike: a common beginning is computed once.

The prompts in an attack's wrapping share half of their tokens. First the beginnings run, one row for each; then the
rest of every prompt, after a copy of its beginning's keys and values, in passes of like lengths. The result is the
cache of an ordinary pass over the left-padded batch, up to the rounding that also the batch's padding causes.

Legend: B rows of the batch, P beginnings, T columns, H heads of keys, D their width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from seawall.models.decoding import TokenIds
from seawall.models.moe.calls import ByToken

_ROWS = 12
"""Rows of a pass over the ends of prompts: few, so that they are of like lengths."""
_LEAST = 4
"""Fewest tokens of a beginning."""
_PASS = 15
"""What a pass costs beside its tokens, in tokens; measured on the embedded model."""
_GAIN = 0.9
"""Largest share of the ordinary pass's tokens at which beginnings are shared."""
_PROBE = ((5, 6, 7, 8, 9, 10, 11), (5, 6, 7, 8, 9, 3), (5, 6, 7, 8, 9, 12, 4, 3, 2), (7, 3))
"""Three prompts with a beginning, and one without."""
_TOLERANCE, _TOLERANCE_16_BIT = 1e-3, 0.1
"""Largest difference of logits relative to their spread, as between a row alone and in a batch."""
_works: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
Forward = Callable[..., Any]
"""The model's forward with a cache: (input_ids, attention_mask, position_ids, past_key_values) -> its output."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Beginnings, and of each row the number of its beginning and how many tokens of it are the row's own.

    Attributes:
        beginnings: token ids of each beginning.
        of_row: (position in `beginnings`, tokens that the row takes from it); no tokens where it shares none.
        tokens: of all passes, padding included, and what the passes themselves cost.
    """

    beginnings: tuple[TokenIds, ...]
    of_row: tuple[tuple[int, int], ...]
    tokens: int


def plan_of(prompts: Sequence[TokenIds]) -> Plan | None:
    """The cheapest sharing among these prompts; None where it does not pay."""
    order = sorted(range(len(prompts)), key=lambda row: prompts[row])
    common = [_common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    plans = [
        _plan(prompts, order, common, threshold) for threshold in {length for length in common if length >= _LEAST}
    ]
    best = min(plans, key=lambda plan: plan.tokens, default=None)
    ordinary = len(prompts) * max(map(len, prompts)) + _PASS
    return best if best is not None and best.tokens <= _GAIN * ordinary else None


def can_share(model: PreTrainedModel, forward: Forward) -> bool:
    """Whether a shared first pass gives this model's numbers; tried once, on four short prompts.

    Never where something else acts on the modules: a hook may count positions from the beginning or end of a prompt.
    """
    if model.training or not _is_bare(model):
        return False
    if model not in _works:
        _works[model] = _same_shared(model, forward)
    return _works[model]


def shared_first_pass(
    forward: Forward, prompts: Sequence[TokenIds], plan: Plan, pad_id: int, *, device: torch.device
) -> tuple[Any, Tensor]:
    """(cache of the left-padded batch, logits (B, V) after its last column).

    Raises:
        TypeError: the cache holds something else than the keys and values of all tokens.
    """
    ids_PT, mask_PT = left_padded(plan.beginnings, pad_id, device=device)
    begun = forward(ids_PT, mask_PT, _positions(mask_PT), None).past_key_values
    _require_plain(begun)
    width = max(map(len, prompts))
    order = sorted(range(len(prompts)), key=lambda row: plan.of_row[row][1] - len(prompts[row]))
    states: list[list[tuple[Tensor, Tensor]]] = []
    logits: list[Tensor] = []
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        source_B2 = torch.tensor([plan.of_row[row] for row in rows], device=device)
        cache = copy.deepcopy(begun)
        cache.reorder_cache(source_B2[:, 0])
        ids_BT, own_BT = left_padded([prompts[row][plan.of_row[row][1] :] for row in rows], pad_id, device=device)
        mask_BT = torch.cat([mask_PT[source_B2[:, 0]] * (source_B2[:, 1:] > 0), own_BT], dim=1)
        output = forward(ids_BT, mask_BT, _positions(mask_BT)[:, -own_BT.shape[1] :], cache)
        logits.append(output.logits[:, -1])
        columns_BT = _columns(mask_BT, width)
        states.append(
            [(_aligned(layer.keys, columns_BT), _aligned(layer.values, columns_BT)) for layer in cache.layers]
        )
    place_B = torch.empty(len(order), dtype=torch.long, device=device)
    place_B[torch.tensor(order, device=device)] = torch.arange(len(order), device=device)
    for index, layer in enumerate(cache.layers):
        layer.keys, layer.values = (
            torch.cat([state[index][part] for state in states])[place_B.to(layer.keys.device)] for part in (0, 1)
        )
    return cache, torch.cat(logits)[place_B.to(logits[0].device)]


def left_padded(prompts: Sequence[TokenIds], pad_id: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask (B, T), padded on the left so that every row's newest token is in the last column."""
    width = max(len(prompt) for prompt in prompts)
    tokens = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _plan(prompts: Sequence[TokenIds], order: Sequence[int], common: Sequence[int], threshold: int) -> Plan:
    """Neighbours in `order` with at least `threshold` tokens in common share a beginning."""
    groups: list[tuple[list[int], int]] = [([order[0]], len(prompts[order[0]]) - 1)]
    for row, length in zip(order[1:], common, strict=True):
        rows, shared = groups[-1]
        together = min(shared, length, len(prompts[row]) - 1)
        if length >= threshold and together >= _LEAST:
            groups[-1] = ([*rows, row], together)
        else:
            groups.append(([row], len(prompts[row]) - 1))
    sharing = [(rows, length) for rows, length in groups if len(rows) > 1]
    of_row = dict.fromkeys(order, (0, 0))
    of_row |= {row: (index, length) for index, (rows, length) in enumerate(sharing) for row in rows}
    beginnings = tuple(prompts[rows[0]][:length] for rows, length in sharing)
    own = sorted((len(prompts[row]) - length for row, (_, length) in of_row.items()), reverse=True)
    passes = [own[start : start + _ROWS] for start in range(0, len(own), _ROWS)]
    first = len(beginnings) * max(map(len, beginnings), default=0) + _PASS
    tokens = first + sum(len(lengths) * lengths[0] + _PASS for lengths in passes)
    return Plan(beginnings, tuple(of_row[row] for row in range(len(prompts))), tokens)


def _common(a: TokenIds, b: TokenIds) -> int:
    """Number of first tokens that two prompts share."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _positions(mask_BT: Tensor) -> Tensor:
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def _columns(mask_BT: Tensor, width: int) -> Tensor:
    """The columns of each row's tokens, in order and at the end of `width` columns; any column before them."""
    columns_BT = torch.sort(mask_BT, dim=1, stable=True)[1][:, -width:]
    return pad(columns_BT, (width - columns_BT.shape[1], 0))


def _aligned(states_BHTD: Tensor, columns_BT: Tensor) -> Tensor:
    """Keys or values of these columns."""
    _, heads, _, size = states_BHTD.shape
    return states_BHTD.gather(2, columns_BT[:, None, :, None].to(states_BHTD.device).expand(-1, heads, -1, size))


def _require_plain(cache: Any) -> None:
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise TypeError(f"{type(cache).__name__} holds more than keys and values of all tokens")


def _is_bare(model: PreTrainedModel) -> bool:
    """Whether every module is as transformers made it, but for forwards that compute each token on its own."""
    output = model.get_output_embeddings()  # its hook makes the input contiguous
    for module in model.modules():
        attributes = vars(module)
        hooks = chain(attributes["_forward_hooks"], attributes["_forward_pre_hooks"])
        if module is not output and any(True for _ in hooks):
            return False
        if not isinstance(attributes.get("forward"), ByToken | None):
            return False
    return True


@torch.no_grad()
def _same_shared(model: PreTrainedModel, forward: Forward) -> bool:
    """Whether the logits after a shared first pass, and of the next token, are those of an ordinary pass."""
    size = int(model.get_input_embeddings().weight.shape[0])
    prompts = [tuple(token % size for token in prompt) for prompt in _PROBE]
    order = sorted(range(len(prompts)), key=lambda row: prompts[row])
    plan = _plan(prompts, order, [_common(prompts[a], prompts[b]) for a, b in pairwise(order)], _LEAST)
    ids_BT, mask_BT = left_padded(prompts, 0, device=model.device)
    next_B1, after_BT = ids_BT[:, :1], pad(mask_BT, (0, 1), value=1)
    try:
        shared, first_BV = shared_first_pass(forward, prompts, plan, 0, device=model.device)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # another kind of cache
        return False
    ordinary = forward(ids_BT, mask_BT, _positions(mask_BT), None)
    pairs = [(first_BV, ordinary.logits[:, -1])]
    steps = [
        forward(next_B1, after_BT, _positions(after_BT)[:, -1:], cache) for cache in (shared, ordinary.past_key_values)
    ]
    pairs.append((steps[0].logits[:, -1], steps[1].logits[:, -1]))
    spreads = [
        (expected - expected.mean(-1, keepdim=True)).float().norm(dim=-1).clamp(min=1e-6) for _, expected in pairs
    ]
    errors = [
        ((ours - expected).float().norm(dim=-1) / spread).tolist()
        for (ours, expected), spread in zip(pairs, spreads, strict=True)
    ]
    if model.dtype in (torch.float32, torch.float64):
        return bool(max(chain(*errors)) <= _TOLERANCE)
    return bool(median(chain(*errors)) <= _TOLERANCE_16_BIT)
