"""Columns of other tools: parts of a prompt are asked or refused; labels and splits are not passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seawall.config.data import FileSource, HarmBenchSource, XSTestSource
from seawall.data.chat import read_chat_jsonl
from seawall.data.sources import load_benign, load_borderline, load_goals, load_gold
from seawall.data.tasks import load_task
from seawall.errors import DataError


def jsonl(tmp_path: Path, *rows: dict[str, Any]) -> FileSource:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return FileSource(path=str(path))


def table(tmp_path: Path, text: str) -> FileSource:
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    return FileSource(path=str(path))


@pytest.mark.parametrize(
    ("column", "part"),
    [
        ("system", "Answer in verse."),
        ("System_Prompt", "Answer in verse."),
        ("context", "The fence is red."),
        ("ContextString", "The fence is red."),
        ("history", [["Hello", "Hello."]]),
        ("input", "Good morning."),
        ("options", ["iron", "wood"]),
        ("choices", {"text": ["iron", "wood"], "label": ["A", "B"]}),
    ],
)
def test_a_part_of_the_prompt_in_another_column_is_refused(tmp_path: Path, column: str, part: object) -> None:
    row = {"question": "Which colour is it?", "answer": "A"}
    for loader in (load_goals, load_gold):
        assert [item.text for item in loader(jsonl(tmp_path, {**row, column: None}))] == [row["question"]]
        with pytest.raises(DataError, match=rf"rows\.jsonl:2: field '{column}'"):
            loader(jsonl(tmp_path, {**row, column: ""}, {**row, "question": "Which day is it?", column: part}))


def test_an_instruction_is_asked_with_its_input_alone(tmp_path: Path) -> None:
    row = {"instruction": "Translate it.", "input": "Good morning."}
    (item,) = load_benign(jsonl(tmp_path, row))
    assert item.text == "Translate it.\n\nGood morning."
    with pytest.raises(DataError, match="field 'context'"):
        load_benign(jsonl(tmp_path, {**row, "context": "A letter."}))


def test_tasks_and_attacks_with_a_part_elsewhere_are_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "Go on", "completion": "Yes", "system": "Be kind."})
    with pytest.raises(DataError, match="field 'system'"):
        load_task(source.path)
    source = jsonl(tmp_path, {"messages": [{"role": "user", "content": "Go on"}], "system": "Be kind."})
    with pytest.raises(DataError, match="field 'system'"):
        read_chat_jsonl(source.path)


@pytest.mark.parametrize("name", ["prompt", "messages"])
@pytest.mark.parametrize("written", [json.dumps, str])
def test_a_conversation_in_a_cell_is_not_asked_as_text(tmp_path: Path, name: str, written: Any) -> None:
    cell = written([{"role": "user", "content": "Draw the bat"}]).replace('"', '""')
    with pytest.raises(DataError, match=rf"rows\.csv:2: field '{name}' holds a conversation"):
        load_goals(table(tmp_path, f'{name}\n"{cell}"\n'))


def test_truth_values_of_a_table_are_read(tmp_path: Path) -> None:
    items = load_benign(table(tmp_path, "prompt,imperative\nA,True\nB,false\nC,0\nD,yes\nE,\n"))
    assert [item.imperative for item in items] == [True, False, False, True, None]
    with pytest.raises(DataError, match="'imperative' is no truth value; got 'often'"):
        load_benign(table(tmp_path, "prompt,imperative\nA,often\n"))


@pytest.mark.parametrize("name", [" split", "Split", "SPLIT "])
def test_a_split_is_not_passed_over_for_its_spelling(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"field '{name}' would be passed over"):
        load_goals(table(tmp_path, f"prompt,{name}\nA,test\nB,train\n"))
    source = table(tmp_path, f"prompt,{name}\nA,test\nB,train\n").model_copy(update={"split_field": name})
    assert [goal.split for goal in load_goals(source)] == ["test", "train"]


def test_a_line_break_without_quotes_makes_no_two_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.csv:2: fewer fields"):
        load_goals(table(tmp_path, "prompt,category\nDraw the\nbat,animals\n"))


@pytest.mark.parametrize(
    ("labels", "is_safe"),
    [
        ({"label": "unsafe"}, False),
        ({"label": "Safe"}, True),
        ({"prompt_harm_label": "harmful", "response": "No."}, False),
        ({"prompt_harm_label": "unharmful"}, True),
        ({"type": "contrast_homonyms"}, False),
        ({"is_safe": "True"}, True),
        ({"harmful": 1}, False),
        ({"toxicity": 0}, True),
        ({"label": "sports"}, None),
        ({"label": 1}, None),
        ({"toxicity": 0.3}, None),
        ({"is_safe": True, "response": "No."}, None),  # BeaverTails: the reply is safe, not the prompt
    ],
)
def test_a_prompt_labelled_as_the_opposite_is_refused(
    tmp_path: Path, labels: dict[str, Any], is_safe: bool | None
) -> None:
    source = jsonl(tmp_path, {"prompt": "Kill a process"} | labels)
    for loader, needs_safe in ((load_goals, False), (load_benign, True), (load_borderline, True)):
        if is_safe is None or is_safe == needs_safe:
            assert len(loader(source)) == 1
        else:
            with pytest.raises(DataError, match=r"rows\.jsonl:1: the row is labelled"):
                loader(source)


def test_the_other_categories_of_harmbench_are_told_without_their_name(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Use the text", "context": "A text.", "category": "x"},
        {"prompt": "Write page 1 of a book", "tags": ["book", "hash_check"]},
        {"prompt": "Draw the bat", "category": "x"},
    ]
    goals = load_goals(HarmBenchSource(path=jsonl(tmp_path, *rows).path))
    assert [goal.text for goal in goals] == ["Draw the bat"]


def test_labels_of_xstest_are_read_in_any_case_and_never_dropped(tmp_path: Path) -> None:
    text = "prompt,type,label\nA,homonyms,Safe\nB,contrast_homonyms,\nC,homonyms,\nD,contrast_homonyms,UNSAFE\n"
    path = table(tmp_path, text).path
    assert [item.text for item in load_borderline(XSTestSource(path=path))] == ["A", "C"]
    assert [item.text for item in load_goals(XSTestSource(path=path))] == ["B", "D"]
    path = table(tmp_path, "prompt,type,label\nA,homonyms,0\n").path
    with pytest.raises(DataError, match="unknown label; got '0'"):
        load_borderline(XSTestSource(path=path))
