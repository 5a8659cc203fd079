"""Probes of an engine: prompts that use many experts, and the rule before its first reply is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.data import BuiltinSource
from seawall.data.sources import load_benign, load_goals
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ConfigError
from seawall.evaluation.served.client import Served
from seawall.evaluation.served.verdict import Comparison, compare
from seawall.models.decoding import Loaded, TokenIds, context_length
from seawall.models.generate import evaluating
from seawall.models.reference import Reference, covering, experts_used, random_prompts, references
from seawall.models.replicas import computed_in_step

_SPARE, _MOST_SPARE = 3, 48
"""Candidates beyond the number of probes: for each probe, and in total at most."""
_PROBES, _TOKENS = 4, 8


def require_same_replies(loaded: Loaded, engine: str, ask: Callable[[list[Reference]], list[Served]]) -> None:
    """Refuse an engine whose greedy replies or log probabilities are not those of the local weights.

    Args:
        loaded: the local model and its tokenizer.
        engine: its name in recipes.
        ask: the engine's side of the probes.

    Raises:
        ConfigError: the engine computes another model; or of the engine.
    """
    model, tokenizer = loaded
    local = computed_in_step(loaded, _local_replies)
    comparison = compare(
        local,
        ask(local),
        precision="float32" if str(model.dtype) == "torch.float32" else "16-bit",
        text_of=lambda token: str(tokenizer.decode([token])),
    )
    if not comparison.passed:
        raise ConfigError(
            f"the replies of the engine {engine} are not those of the local weights",
            got=_difference(comparison),
            expected=_expected(comparison),
            remedy="set engine.kind=transformers; `seawall verify` compares a served model with more probes",
        )


def _local_replies(loaded: Loaded) -> list[Reference]:
    model, tokenizer = loaded
    with evaluating(model):
        probes = choose_probes(model, tokenizer, _PROBES, new_tokens=_TOKENS)
        length = reply_length(model, probes, _TOKENS)
        return references(model, tokenizer, probes, new_tokens=length, progress=lambda count, total: None)


def _difference(comparison: Comparison) -> str:
    split = comparison.first
    if split is not None:
        served = repr(split.served) if split.served else "the end"
        return f"{served} as token {split.position + 1} of the reply to probe {split.probe + 1}"
    return f"log probabilities that differ by {comparison.largest:.3g} nats, {comparison.mean:.3g} in the mean"


def _expected(comparison: Comparison) -> str:
    if comparison.first is not None:
        return f"{comparison.first.local!r}, as the local weights write"
    measure = "at most" if comparison.precision == "float32" else "a mean of at most"
    return f"{measure} {comparison.tolerance:.3g} nats"


def choose_probes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, *, new_tokens: int
) -> list[TokenIds]:
    """Probes that together use many experts: half of them requests, the rest requests or random tokens.

    Candidates are the embedded requests, harmless and harmful in turn, and as many random prompts.
    """
    size = count + min(_SPARE * count, _MOST_SPARE)
    sources = (load_benign(BuiltinSource()), load_goals(BuiltinSource()))
    texts = [prompt.text for pair in zip(*sources, strict=False) for prompt in pair][:size]
    limit = context_length(model)
    requests = [tuple(encode_prompt(tokenizer, user(text))) for text in texts]
    requests = [ids for ids in requests if limit is None or len(ids) + 2 <= limit]
    candidates = requests + random_prompts(model, tokenizer, size, new_tokens=new_tokens)
    used = experts_used(model, candidates)
    first = covering(used[: len(requests)], (count + 1) // 2)
    return [candidates[position] for position in covering(used, count, first=first)]


def reply_length(model: PreTrainedModel, probes: Sequence[TokenIds], new_tokens: int) -> int:
    """`new_tokens`, or the length of replies that the context of the model holds for every probe."""
    limit = context_length(model)
    longest = max(map(len, probes))
    return new_tokens if limit is None else max(1, min(new_tokens, limit - longest - 1))
