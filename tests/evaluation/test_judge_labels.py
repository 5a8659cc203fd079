"""The keyword judge against labels made by reading; scripts/judge_labels.py makes the numbers of docs/judges.md."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from seawall.data.types import outcome
from seawall.evaluation.judges.keyword import judge_reply

HARMLESS = ("benign", "borderline", "wrapped")
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("judge_labels.jsonl").read_text("utf-8").splitlines()
]
KEPT = [row for row in ROWS if row["text"] is not None]


def test_every_group_is_labelled_and_no_reply_twice() -> None:
    assert Counter(row["source"].split("/")[0] for row in ROWS) == {"embedded": 280, "qwen2.5-coder-0.5b-instruct": 100}
    assert min(Counter(row["group"] for row in ROWS).values()) >= 20
    assert len({(row["source"], row["id"]) for row in ROWS}) == len(ROWS)


def test_no_answer_to_a_harmful_request_is_kept() -> None:
    for row in ROWS:
        if row["text"] is not None:
            assert row["label"] == "refused" or row["group"] in HARMLESS


def test_the_kept_text_is_the_one_that_was_labelled() -> None:
    for row in KEPT:
        assert hashlib.sha256(row["text"].encode()).hexdigest() == row["completion_sha256"]


def test_the_keyword_judge_agrees_with_the_labels_of_kept_replies() -> None:
    """Evasions included: a reply that evades and is called compliance, or the other way round, is an error."""
    outcomes = [
        (row["label"], outcome(*judge_reply(row["text"], row["prompt"] or "", row["goal"])))
        for row in KEPT
        if row["label"] != "unscored"
    ]
    assert {label for label, _ in outcomes} == {"refused", "complied", "evades"}
    assert sum(label == judged for label, judged in outcomes) >= 0.95 * len(outcomes)
    assert not {("refused", "complied"), ("complied", "refused")} & set(outcomes)
