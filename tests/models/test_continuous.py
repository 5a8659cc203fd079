"""Continuous batching writes what our loop writes, token for token, with a cache of any size."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from dense import dense
from families import VOCABULARY, tiny, tiny_tokenizer
from seawall.data.types import user
from seawall.errors import UnsupportedModelError
from seawall.models.continuous import ContinuousDecoder
from seawall.models.decoding import Completion, Decoding, TokenIds
from seawall.models.generate import generate, greedy_batches

TOKENIZER = tiny_tokenizer()
EOS = frozenset(range(2, 40))
"""Many end tokens, so that the replies of random models end at different steps."""
DECODING = Decoding(max_new_tokens=12, eos_ids=EOS, pad_id=0)
LENGTHS = (5, 9, 30, 61, 12, 7, 1)
SMALL = ContinuousDecoder(cache_tokens=64, batch_tokens=32)
"""Prompts are read in pieces, and replies wait for the pages of others."""


def prompts(lengths: Sequence[int] = LENGTHS) -> list[TokenIds]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(40, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]


def by_loop(model: PreTrainedModel, decoding: Decoding = DECODING) -> list[TokenIds]:
    replies: dict[int, TokenIds] = {}
    for positions, rows in greedy_batches(model, prompts(), decoding, batch_size=3):
        replies.update(zip(positions, rows, strict=True))
    return [replies[index] for index in range(len(LENGTHS))]


def by_decoder(model: PreTrainedModel, decoder: ContinuousDecoder, decoding: Decoding = DECODING) -> list[TokenIds]:
    replies: dict[int, TokenIds] = {}
    for positions, rows in decoder((model, TOKENIZER), prompts(), decoding, batch_size="auto"):
        replies.update(zip(positions, rows, strict=True))
    return [replies[index] for index in range(len(LENGTHS))]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_dense_model_writes_the_same(family: str) -> None:
    model = dense(family)
    assert by_decoder(model, ContinuousDecoder()) == by_loop(model)


@pytest.mark.parametrize("family", ["olmoe", "glm4_moe", "gpt_oss"])
@pytest.mark.parametrize("decoder", [ContinuousDecoder(), SMALL], ids=["large", "small"])
def test_a_moe_writes_the_same(family: str, decoder: ContinuousDecoder) -> None:
    model = tiny(family)
    attention = model.config._attn_implementation
    rows = by_loop(model)
    assert len({len(row) for row in rows}) > 2
    assert by_decoder(model, decoder) == rows
    assert model.config._attn_implementation == attention


def test_the_context_limits_a_reply() -> None:
    model = dense("llama")
    decoding = Decoding(max_new_tokens=12, eos_ids=frozenset(), pad_id=0, context=64)
    rows = by_decoder(model, ContinuousDecoder(), decoding)
    assert rows == by_loop(model, decoding)
    assert {len(row) for row in rows} == {12, 3}


def test_messages_get_the_same_completions() -> None:
    model = tiny("olmoe")
    texts = [user(f"Paint fence number {index}" + " again" * (index % 4)) for index in range(20)]
    batches: list[int] = []

    def replies(**settings: object) -> list[Completion]:
        return generate(model, TOKENIZER, texts, max_new_tokens=8, batch_size=4, **settings)  # type: ignore[arg-type]

    continuous = replies(decoder=ContinuousDecoder(), on_batch=lambda positions, _: batches.append(len(positions)))
    assert continuous == replies()
    assert sum(batches) == len(texts)


def test_its_log_probabilities_are_those_of_the_model() -> None:
    model = dense("llama")
    (reply,) = ContinuousDecoder().measured(model, prompts((9,)), DECODING)
    (prompt,) = prompts((9,))
    with torch.no_grad():
        log_TV = model(input_ids=torch.tensor([prompt + reply.tokens])).logits[0].log_softmax(-1)
    expected = [float(log_TV[len(prompt) - 1 + index, token]) for index, token in enumerate(reply.tokens)]
    assert reply.log_probabilities == pytest.approx(expected, abs=1e-4)


def test_no_prompt_starts_nothing() -> None:
    assert list(ContinuousDecoder()((dense("llama"), TOKENIZER), [], DECODING, batch_size=1)) == []


@pytest.mark.parametrize("family", ["deepseek_v3", "nemotron_h"])
def test_a_model_that_it_cannot_serve_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"engine\.kind=transformers"):
        by_decoder(tiny(family), ContinuousDecoder())


def test_a_model_without_attention_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)).eval()
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM"):
        by_decoder(model, ContinuousDecoder())


def test_an_error_while_replies_are_saved_ends_the_work() -> None:
    model = dense("llama")

    def refuse(positions: Sequence[int], completions: Sequence[Completion]) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        generate(
            model,
            TOKENIZER,
            [user(f"number {index}") for index in range(40)],
            max_new_tokens=64,
            batch_size=4,
            decoder=ContinuousDecoder(),
            on_batch=refuse,
        )
    assert len(by_decoder(model, SMALL)) == len(LENGTHS)
