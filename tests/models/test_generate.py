from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from families import FAMILIES, UNUSUAL, VOCABULARY, tiny, tiny_tokenizer
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models import memory
from seawall.models.generate import (
    BatchSize,
    Completion,
    Decoding,
    TokenIds,
    decode_batch,
    decoding_for,
    generate,
    greedy_batches,
)
from seawall.models.greedy import rows_are_independent
from seawall.models.memory import automatic_batch_size
from seawall.models.moe.calls import replaced_forward

EOS = frozenset(range(2, 40))
"""Many end tokens, so that the replies of random models end at different steps."""
DECODING = Decoding(max_new_tokens=12, eos_ids=EOS, pad_id=0)
TEXTS = ["Hi", "What is the tallest mountain?", "a", "Write me a poem.", "??", "Tell me a longer story about the sea."]


def _prompts(count: int = 8, seed: int = 0) -> list[TokenIds]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 24, (count,), generator=generator).tolist()
    return [tuple(torch.randint(40, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]


def _all(model: PreTrainedModel, prompts: Sequence[TokenIds], batch_size: BatchSize) -> list[TokenIds]:
    replies: dict[int, TokenIds] = {}
    for positions, rows in greedy_batches(model, prompts, DECODING, batch_size=batch_size):
        replies.update(zip(positions, rows, strict=True))
    return [replies[at] for at in range(len(prompts))]


def _one_by_one(model: PreTrainedModel, prompt: TokenIds) -> TokenIds:
    """Greedy decoding with neither cache nor padding."""
    tokens = list(prompt)
    for _ in range(DECODING.max_new_tokens):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in EOS:
            break
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL, "llama", "llama4_text"])
def test_neighbours_padding_and_cache_do_not_change_a_reply(family: str) -> None:
    model, prompts = tiny(family), _prompts()
    expected = [_one_by_one(model, prompt) for prompt in prompts]
    assert len({len(row) for row in expected}) > 2, "replies must end at different steps"
    assert _all(model, prompts, 1) == expected
    assert _all(model, prompts, 8) == expected
    assert _all(model, prompts, 3) == expected


def test_the_same_tokens_as_transformers() -> None:
    model, prompts = tiny("qwen3_moe"), _prompts()
    for prompt, row in zip(prompts, _all(model, prompts, 8), strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=DECODING.max_new_tokens,
            eos_token_id=sorted(EOS),
            pad_token_id=0,
        )
        assert tuple(theirs[0, len(prompt) :].tolist()) == row


def _seen_batches(model: PreTrainedModel, sizes: list[tuple[int, int]]) -> Callable[..., Any]:
    forward = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        sizes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    return watched


def test_ended_rows_leave_the_batch() -> None:
    model, prompts = tiny("mixtral"), _prompts()
    sizes: list[tuple[int, int]] = []
    assert rows_are_independent(model)
    with replaced_forward(model, _seen_batches(model, sizes)):
        rows = decode_batch(model, prompts, DECODING)
    widest = max(len(prompt) for prompt in prompts)
    assert sizes[0] == (len(prompts), widest)
    alive = [sum(len(row) > step for row in rows) for step in range(max(len(row) for row in rows))]
    assert sizes[1:] == [(rows_left, 1) for rows_left in alive[1:]]
    assert sizes[-1][0] < len(prompts)


def test_long_prompts_run_first_and_lengths_are_alike() -> None:
    prompts = _prompts(10)
    batches = [positions for positions, _ in greedy_batches(tiny("olmoe"), prompts, DECODING, batch_size=4)]
    lengths = [len(prompts[at]) for positions in batches for at in positions]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(positions) for positions in batches] == [4, 4, 2]


class _SmallMemory:
    """A forward pass that fails as if memory ran out above some number of rows."""

    def __init__(self, model: PreTrainedModel, rows: int, error: RuntimeError) -> None:
        self.forward, self.rows, self.error = model.forward, rows, error
        self.tried: list[int] = []

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        if kwargs["past_key_values"] is None:
            self.tried.append(len(input_ids))
        if len(input_ids) > self.rows:
            raise self.error
        return self.forward(input_ids=input_ids, **kwargs)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_batch_is_halved_for_good_when_memory_runs_out(error: RuntimeError) -> None:
    model, prompts = tiny("mixtral"), _prompts()
    expected = _all(model, prompts, 8)
    small = _SmallMemory(model, 2, error)
    with replaced_forward(model, small):
        assert _all(model, prompts, 8) == expected
    assert small.tried == [8, 4, 2, 2, 2, 2]


def test_memory_too_small_for_one_prompt_is_one_line() -> None:
    model = tiny("mixtral")
    with replaced_forward(model, _SmallMemory(model, 0, OUT_OF_MEMORY[0])):
        with pytest.raises(SeawallError, match=r"memory ran out while generating.*12 new ones; lower max_new_tokens"):
            _all(model, _prompts(4), 4)


def test_other_failures_pass_through() -> None:
    model = tiny("mixtral")
    with replaced_forward(model, _SmallMemory(model, 0, RuntimeError("shapes do not match"))):
        with pytest.raises(RuntimeError, match="shapes do not match"):
            _all(model, _prompts(4), 4)


def test_completions_come_in_the_order_of_the_prompts() -> None:
    model, tokenizer = tiny("qwen2_moe"), tiny_tokenizer()
    model.generation_config.eos_token_id = sorted(EOS)
    prompts = [user(text) for text in TEXTS]
    replies = generate(model, tokenizer, prompts, max_new_tokens=9, batch_size=4)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.prompt_ids == tuple(encode_prompt(tokenizer, prompt))
        assert reply == generate(model, tokenizer, [prompt], max_new_tokens=9, batch_size=1)[0]
        assert not EOS & set(reply.token_ids), "neither end tokens nor padding"
        assert reply.ended == (len(reply.token_ids) < 9)
        assert reply.answer == tokenizer.decode(list(reply.token_ids), skip_special_tokens=True)
    assert {reply.ended for reply in replies} == {True, False}


def test_every_batch_is_handed_over_once() -> None:
    model, tokenizer = tiny("mixtral"), tiny_tokenizer()
    shown: list[tuple[int, int]] = []
    kept: dict[int, Completion] = {}

    def keep(positions: Sequence[int], completions: Sequence[Completion]) -> None:
        assert not kept.keys() & set(positions)
        kept.update(zip(positions, completions, strict=True))

    replies = generate(
        model,
        tokenizer,
        [user(text) for text in TEXTS],
        max_new_tokens=4,
        batch_size=4,
        progress=lambda done, total: shown.append((done, total)),
        on_batch=keep,
    )
    assert [kept[at] for at in range(len(TEXTS))] == replies
    assert shown == [(4, 6), (6, 6)]
    assert generate(model, tokenizer, [], max_new_tokens=4, batch_size=4) == []


def test_what_ends_a_reply() -> None:
    model, tokenizer = tiny("mixtral"), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    assert decoding_for(model, tokenizer, 5) == Decoding(5, frozenset({2}), 0, context=256)
    model.generation_config.eos_token_id = 7
    assert decoding_for(model, tokenizer, 5).eos_ids == {2, 7}
    model.generation_config.eos_token_id = [7, 9]
    tokenizer.pad_token = None
    assert decoding_for(model, tokenizer, 5) == Decoding(5, frozenset({2, 7, 9}), 2, context=256)
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    assert decoding_for(model, tokenizer, 5).eos_ids == {2}, "the template's own end of turn"
    tokenizer.chat_template = None
    assert decoding_for(model, tokenizer, 5) == Decoding(5, frozenset(), 0, context=256)


def test_generation_leaves_the_model_as_it_was() -> None:
    model = tiny("mixtral", router_jitter_noise=0.5)
    expected = _all(model, _prompts(4), 4)
    model.train()
    assert _all(model, _prompts(4), 4) == expected, "no router jitter"
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


OTHER_POSITIONS = [
    GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.25),
    BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.25),
]


@pytest.mark.parametrize("config", OTHER_POSITIONS)
def test_absolute_positions_and_none_at_all(config: PreTrainedConfig) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    prompts = _prompts()
    assert _all(model, prompts, 8) == [_one_by_one(model, prompt) for prompt in prompts]


def test_a_model_without_a_cache_of_keys_and_values_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(UnsupportedModelError, match=r"MambaForCausalLM .*past_key_values"):
        _all(model, _prompts(2), 2)


class TestAutomaticBatchSize:
    def test_it_halves_when_a_row_needs_twice_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny("mixtral")
        row = 100 * 32 * 4 * (2 * model.config.num_hidden_layers + 64)
        monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 20 * row)
        assert [automatic_batch_size(model, tokens) for tokens in (100, 200, 400, 2000, 10**9)] == [16, 8, 4, 1, 1]
        monkeypatch.setattr(memory, "free_memory", lambda device: 2**60)
        assert automatic_batch_size(model, 100) == memory.MAX_ROWS["cpu"]

    def test_the_free_memory_is_that_of_this_machine(self) -> None:
        free = memory.free_memory(torch.device("cpu"))
        assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def test_the_texts_are_those_of_any_other_size_also_when_memory_runs_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, prompts = tiny("mixtral"), _prompts()
        expected = _all(model, prompts, 1)
        small = _SmallMemory(model, 2, OUT_OF_MEMORY[0])
        monkeypatch.setattr(memory, "MAX_ROWS", {"cpu": 8})
        assert rows_are_independent(model)
        with replaced_forward(model, small):
            assert _all(model, prompts, "auto") == expected
        assert small.tried == [8, 4, 2, 2, 2, 2]

    def test_no_prompts_need_no_size(self) -> None:
        assert _all(tiny("mixtral"), [], "auto") == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_reply_of_a_model_that_computes_nan_is_unscored_and_no_text(number: float) -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    prompts = [user("Name a bird"), user("Name a bird?"), user("Sing")]
    expected = generate(model, tokenizer, prompts, max_new_tokens=5, batch_size=3)
    mark = int(tokenizer.convert_tokens_to_ids("?"))
    with torch.no_grad():
        model.get_input_embeddings().weight[mark] = number
    used = [mark in row.token_ids for row in expected]
    assert used == [False] * 3, "the number is met in a prompt alone"
    rows = generate(model, tokenizer, prompts, max_new_tokens=5, batch_size=3)
    assert [rows[0], rows[2]] == [expected[0], expected[2]]
    assert (rows[1].answer, rows[1].token_ids, rows[1].ended) == ("", (), False)
    assert rows[1].unscored == "the model computes NaN or infinity after 0 tokens of the reply"
