from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from families import tiny, tiny_tokenizer
from seawall.artifacts.evaluation import NAME, EvalResult
from seawall.data.prompts import Gold
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ArtifactError, DataError
from seawall.evaluation.compare import gold_increase, same_gold
from seawall.evaluation.gold import gold_answer_loss

ROWS = [
    Gold("a", "What is the capital of Canada?", "Ottawa."),
    Gold("b", "Why does ice float?", "It is less dense than water, because water expands when it freezes."),
    Gold("c", "2 + 2?", "4"),
    Gold("d", "Name a colour, please, any colour that you like at all.", "Blue, or green."),
]


class Uniform(torch.nn.Module):
    """Every next token is equally likely, except where the true next one is `favourite`: that has twice the weight."""

    device = torch.device("cpu")

    def __init__(self, vocabulary: int, favourite: int | None = None) -> None:
        super().__init__()
        self.vocabulary, self.favourite, self.config = vocabulary, favourite, PreTrainedConfig()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        if self.favourite is not None:
            logits[..., self.favourite] = math.log(2)
        return SimpleNamespace(logits=logits)


def by_hand(model: Any, tokenizer: Any, row: Gold) -> tuple[float, int]:
    """Nats and tokens of one answer, alone in its batch, token by token in float64."""
    prompt = encode_prompt(tokenizer, user(row.question))
    answer = tokenizer(row.answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    nats = 0.0
    for at, token in enumerate(answer):
        scores = logits[len(prompt) + at - 1]
        nats += float(torch.logsumexp(scores, 0) - scores[token])
    return nats, len(answer)


@pytest.mark.parametrize("family", ["olmoe", "glm4_moe", "gpt_oss"])
def test_it_is_the_mean_over_answer_tokens_computed_by_hand(family: str) -> None:
    model, tokenizer = tiny(family), tiny_tokenizer()
    alone = [by_hand(model, tokenizer, row) for row in ROWS]
    found = gold_answer_loss(model, tokenizer, ROWS, batch_size=3)
    assert found.tokens == sum(tokens for _, tokens in alone)
    assert found.n == len(ROWS)
    assert [answer.id for answer in found.answers] == [row.id for row in ROWS]
    assert [answer.tokens for answer in found.answers] == [tokens for _, tokens in alone]
    assert [answer.nats for answer in found.answers] == pytest.approx([nats for nats, _ in alone], rel=1e-5)
    assert found.loss == pytest.approx(sum(nats for nats, _ in alone) / found.tokens, rel=1e-5)


def test_a_uniform_model_loses_log_v_on_every_token() -> None:
    model: Any = Uniform(300)
    assert gold_answer_loss(model, tiny_tokenizer(), ROWS, batch_size=2).loss == pytest.approx(math.log(300), rel=1e-6)


def test_the_end_token_does_not_count() -> None:
    tokenizer = tiny_tokenizer()
    favours_stopping: Any = Uniform(300, favourite=tokenizer.eos_token_id)
    loss = gold_answer_loss(favours_stopping, tokenizer, ROWS, batch_size=2).loss
    assert loss == pytest.approx(math.log(301), rel=1e-6)


def test_batches_do_not_change_it_and_the_model_keeps_its_mode() -> None:
    model, tokenizer = tiny("olmoe"), tiny_tokenizer()
    model.train()
    losses = [gold_answer_loss(model, tokenizer, ROWS, batch_size=size).loss for size in (1, 2, 4)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert model.training
    assert gold_answer_loss(model, tokenizer, ROWS[::-1], batch_size=1).loss == pytest.approx(losses[0], rel=1e-12)


def test_progress_is_told_after_every_batch() -> None:
    told: list[tuple[int, int]] = []
    model: Any = Uniform(300)
    gold_answer_loss(
        model, tiny_tokenizer(), ROWS, batch_size=3, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(3, 4), (4, 4)]


def test_no_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    model: Any = Uniform(300)
    with pytest.raises(DataError, match="no chat template"):
        gold_answer_loss(model, tokenizer, ROWS, batch_size=2)


def test_a_question_beyond_the_context_has_no_loss() -> None:
    model, tokenizer = tiny("olmoe", max_position_embeddings=64), tiny_tokenizer()
    rows = [Gold("short", "Name a bird", "A heron."), Gold("long", "Name a bird, " * 20, "A heron.")]
    assert gold_answer_loss(model, tokenizer, rows[:1], batch_size=1).n == 1
    with pytest.raises(DataError, match=r"1 of 2 gold questions .* beyond the context of 64 tokens; got long first"):
        gold_answer_loss(model, tokenizer, rows, batch_size=1)


def test_an_edited_question_of_the_same_id_and_length_is_not_compared(tmp_path: Path) -> None:
    model, tokenizer = tiny("olmoe"), tiny_tokenizer()
    rows = [Gold("q0", "one and one?", "two"), Gold("q1", "two and two?", "four")]
    edited = [rows[0], Gold("q1", "two and tea?", "four")]
    result, again, other = (
        EvalResult("sha256:x", {}, loss.loss, loss.n, "samples.jsonl", loss.answers)
        for loss in (gold_answer_loss(model, tokenizer, asked, batch_size=2) for asked in (rows, rows, edited))
    )
    assert gold_increase(result, again) is not None
    with pytest.raises(ArtifactError, match="different gold questions"):
        gold_increase(result, other)
    other.save(tmp_path)
    assert EvalResult.load(tmp_path) == other
    early = replace(other, gold=tuple(replace(answer, digest="") for answer in other.gold))
    assert same_gold(result, early)
    early.save(tmp_path)
    assert "digest" not in (tmp_path / NAME).read_text()
