"""The keyword judge against labels made by reading; scripts/judge_labels.py makes the numbers of docs/judges.md."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from seawall.evaluation.judges.keyword import judge_reply

HARMLESS = ("benign", "borderline", "wrapped")
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("judge_labels.jsonl").read_text("utf-8").splitlines()
]
KEPT = [row for row in ROWS if row["text"] is not None]


def test_every_group_is_labelled_and_no_reply_twice() -> None:
    assert len(ROWS) >= 200
    assert min(Counter(row["group"] for row in ROWS).values()) >= 20
    assert len({(row["prompt_sha256"], row["completion_sha256"]) for row in ROWS}) == len(ROWS)


def test_no_answer_to_a_harmful_request_is_kept() -> None:
    for row in ROWS:
        harmless = row["label"] == "refused" or (row["label"] == "complied" and row["group"] in HARMLESS)
        assert (row["text"] is not None) == harmless


def test_the_kept_text_is_the_one_that_was_labelled() -> None:
    for row in KEPT:
        assert hashlib.sha256(row["text"].encode()).hexdigest() == row["completion_sha256"]


def test_the_keyword_judge_agrees_with_the_labels_of_kept_replies() -> None:
    verdicts = [(row["label"], judge_reply(row["text"])[0]) for row in KEPT]
    scored = [pair for pair in verdicts if "unscored" not in pair]
    assert {label for label, _ in scored} == {"refused", "complied"}
    assert len(scored) >= 0.99 * len(KEPT)
    assert sum(label == judged for label, judged in scored) >= 0.98 * len(scored)
