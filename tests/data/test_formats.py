"""Prompts in the formats of TRL: `prompt` as text or messages, `messages`; JSONL, JSON, CSV, Parquet and the Hub."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from seawall.config.data import DataConfig, DatasetSource, FileSource
from seawall.data.pairs import make_pairs
from seawall.data.sets import load_prompts
from seawall.data.sources import load_benign, load_goals, load_gold
from seawall.data.types import Message, user
from seawall.errors import DataError
from seawall.evaluation.suite import build_suite

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Draw the bat"}
REPLY = {"role": "assistant", "content": "First look at it."}
ROWS: list[dict[str, Any]] = [
    {"prompt": "Draw the cat"},
    {"prompt": [SYSTEM, ASKED]},
    {"messages": [SYSTEM, ASKED, REPLY, {"role": "user", "content": "And the dog"}, REPLY]},
]
BUILTIN = "sha256:79d799a5acbd317466b9d6078f0efbe92a0db8f3b8c8438a688ffbe3e6d317cb"
"""Fingerprint of the built-in prompts before they could have a context."""
PROMPTS = [
    user("Draw the cat"),
    (Message("system", "Be brief."), Message("user", "Draw the bat")),
    (
        Message("system", "Be brief."),
        *(Message("user", "Draw the bat"), Message("assistant", "First look at it.")),
        Message("user", "And the dog"),
    ),
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def json_list(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.Table.from_pylist([{"prompt": None, "messages": None, **row} for row in rows]), path
    )


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": jsonl,
    "rows.json": json_list,
    "rows.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_conversations(tmp_path: Path, name: str) -> None:
    rows = ROWS if name != "rows.parquet" else ROWS[1:]  # a column of Parquet has one type
    WRITERS[name](tmp_path / name, rows)
    items = load_benign(FileSource(path=str(tmp_path / name)))
    assert [item.prompt for item in items] == PROMPTS[-len(rows) :]
    assert items[-1].text == "And the dog"


def test_a_csv_of_prompts(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], ["Draw the cat"]])
    assert [item.prompt for item in load_goals(FileSource(path=str(tmp_path / "rows.csv")))] == [user("Draw the cat")]


def test_the_last_reply_is_the_answer_of_a_gold_question(tmp_path: Path) -> None:
    rows = [{"messages": [SYSTEM, ASKED, REPLY]}, {"prompt": [SYSTEM, ASKED], "completion": [REPLY]}]
    jsonl(tmp_path / "rows.jsonl", [rows[0], {**rows[1], "prompt": [ASKED]}])
    first, second = load_gold(FileSource(path=str(tmp_path / "rows.jsonl")))
    assert first.exchange.prompt == PROMPTS[1]
    assert (first.exchange.response, second.exchange.response) == (REPLY["content"], REPLY["content"])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Draw the bat"}, "'prompt' is missing"),
        ({"prompt": []}, "'prompt' is not a conversation"),
        ({"prompt": [SYSTEM]}, "system"),
        ({"prompt": [ASKED, REPLY]}, "the last message has the wrong role; got assistant"),
        ({"messages": [REPLY]}, "out of turn"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "got 'tool'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "has no text"),
    ],
)
def test_a_row_without_a_prompt_is_refused_with_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    jsonl(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{says}"):
        load_benign(FileSource(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.json", b'{"prompt": "x"}', "not a list of objects"),
        ("rows.json", b'[{"prompt": "x"}, 3]', "item 2: not a JSON object"),
        ("rows.parquet", b"no parquet", "not a readable Parquet file"),
        ("rows.xlsx", b"", r"unknown file format; got \.xlsx; expected \.jsonl, \.json, \.csv, \.parquet"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_benign(FileSource(path=str(tmp_path / name)))


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs the library `datasets`.*seawall\[hub\]"):
        load_benign(FileSource(path=str(tmp_path / "rows.parquet")))


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        calls.append((*arguments, options))
        return ROWS

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    source = DatasetSource(id="owner/chats", hub_split="train_sft", revision="abc")
    items = load_benign(source)
    assert [item.prompt for item in items] == PROMPTS
    assert items[0].id == "owner.chats-1"
    assert calls == [("owner/chats", None, {"split": "train_sft", "revision": "abc"})]
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: [{"prompt": "x"}, {"text": "y"}])
    with pytest.raises(DataError, match=r"owner/chats row 2: field 'prompt' is missing"):
        load_benign(source)


def test_context_is_asked_and_attacks_keep_the_system_message(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", [{**row, "split": "test"} for row in ROWS])
    source = FileSource(path=str(tmp_path / "rows.jsonl"))
    goals = load_goals(source)
    pairs = make_pairs(goals, ["role_play"])
    assert [pair.plain for pair in pairs] == PROMPTS
    assert [pair.attack[0].role for pair in pairs] == ["user", "system", "system"]
    assert all(len(pair.attack) == 2 for pair in pairs[1:])
    prompts = load_prompts(DataConfig(harmful=source, benign=source))
    groups = build_suite(prompts).groups
    assert [prompt for _, prompt in groups["plain"]] == PROMPTS
    assert [prompt for _, prompt in groups["benign"]] == PROMPTS
    assert [prompt[0].role for _, prompt in groups["wrapped"]] == ["user", "system", "system"]


def test_the_same_request_in_two_contexts_is_two_prompts(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", [{"prompt": [ASKED]}, {"prompt": [SYSTEM, ASKED]}, {"prompt": "draw the bat"}])
    assert len(load_goals(FileSource(path=str(tmp_path / "rows.jsonl")))) == 2


def test_prompts_without_context_have_the_fingerprint_of_before() -> None:
    assert load_prompts(DataConfig()).fingerprint() == BUILTIN
