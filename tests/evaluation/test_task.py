"""A task's score: what counts as right, and that it is counted over what the model itself writes."""

from __future__ import annotations

from typing import get_args

import pytest

from families import tiny, tiny_tokenizer
from seawall.data.types import Exchange, user
from seawall.errors import DataError
from seawall.evaluation.intervals import exact_interval
from seawall.evaluation.task import MATCHERS, AnswerMatch, _reference, score_task
from seawall.models.generate import generate

CASES: list[tuple[AnswerMatch, str, str, bool]] = [
    ("exact", "return", "Return", True),
    ("exact", "return", "\n  **return**.\nBecause the jacket does not fit.", True),
    ("exact", "return", '"return"', True),
    ("exact", "return", "returns", False),
    ("exact", "return", "It is about a return", False),
    ("exact", "return", "payment\nreturn", False),
    ("exact", "return", "", False),
    ("exact", "The  answer.", "the answer", True),
    ("prefix", "pay", "Pay, since the card was refused", True),
    ("prefix", "pay", "payment", False),
    ("prefix", "pay", "You pay", False),
    ("number", "She has 3 * 4 = 12 eggs.\n#### 12", "First 3, then 4, so the answer is 12.", True),
    ("number", "#### 1,200", "It costs $1200.00 in all", True),
    ("number", "#### 12", "12 of 24", False),
    ("number", "#### 12", "twelve", False),
    ("number", "#### -7", "The result is -7", True),
    ("number", "#### -7", "The result is 7", False),
]


@pytest.mark.parametrize(("answer", "wanted", "reply", "right"), CASES)
def test_what_counts_as_right(answer: AnswerMatch, wanted: str, reply: str, right: bool) -> None:
    sought = _reference(Exchange(user("?"), wanted), answer, 1)
    assert MATCHERS[answer](reply, sought) is right


def test_every_way_to_compare_has_a_reader() -> None:
    assert set(get_args(AnswerMatch)) == set(MATCHERS)


def test_the_score_is_the_share_of_replies_that_are_right() -> None:
    model, tokenizer = tiny("glm4_moe"), tiny_tokenizer()
    prompts = [user(text) for text in ("Hi", "What is it?", "Name a colour, please.", "2 + 2?", "Why?")]
    replies = [one.answer for one in generate(model, tokenizer, prompts, max_new_tokens=3, batch_size=1)]
    lines = [next(line for line in f"{reply}\nx".splitlines() if line.strip()) for reply in replies]
    wanted = [*lines[:3], "no such reply", "nor this"]
    model.train()
    told: list[tuple[int, int]] = []
    rows = [Exchange(prompt, one) for prompt, one in zip(prompts, wanted, strict=True)]
    found = score_task(
        model,
        tokenizer,
        rows,
        answer="exact",
        max_new_tokens=3,
        batch_size=2,
        progress=lambda done, of: told.append((done, of)),
    )
    assert model.training
    assert found.right == (True, True, True, False, False)
    assert found.replies == tuple(replies)
    assert (found.n, found.rate.n, found.rate.rate, found.rate.unscored) == (5, 5, 0.6, 0)
    assert (found.rate.low, found.rate.high) == exact_interval(3, 5)
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert 0 < found.cut <= 5


@pytest.mark.parametrize(
    ("answer", "wanted", "saying"),
    [
        ("number", "four", "row 2 of the task cannot be scored by `number`; got an answer without a number"),
        ("exact", "one\ntwo", "row 2 .* by `exact`; got an answer of several lines; expected an answer of one line"),
        ("prefix", " . ", "row 2 .* by `prefix`; got an answer without a number or letters"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused_before_anything_is_asked(
    answer: AnswerMatch, wanted: str, saying: str
) -> None:
    rows = [Exchange(user("?"), "4"), Exchange(user("?"), wanted)]
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    told: list[tuple[int, int]] = []
    with pytest.raises(DataError, match=saying) as caught:
        score_task(model, tokenizer, rows, answer=answer, progress=lambda *done: told.append(done))
    assert "\n" not in str(caught.value)
    assert not told
    with pytest.raises(DataError, match="got no rows"):
        score_task(model, tokenizer, [], answer=answer)
