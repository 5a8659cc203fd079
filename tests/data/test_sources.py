from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from places import SHARED
from seawall.config.data import (
    AdvBenchSource,
    BuiltinSource,
    HarmBenchSource,
    JailbreakBenchSource,
    JsonlSource,
    SourceConfig,
    StrongRejectSource,
    XSTestSource,
)
from seawall.data.prompts import Goal
from seawall.data.public import LAYOUTS
from seawall.data.sources import SOURCES, load_benign, load_borderline, load_goals, load_gold, load_refusals
from seawall.errors import DataError

DATA = SHARED / "data"
needs_shared = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not here")


def jsonl(folder: Path, *rows: object, name: str = "prompts.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def csv(folder: Path, text: str, name: str = "prompts.csv") -> str:
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def fake_hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., object]) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_sources_and_config_agree() -> None:
    union = get_args(get_args(SourceConfig)[0])
    assert set(SOURCES) == {variant.model_fields["kind"].default for variant in union}


class TestBuiltin:
    def test_goals_are_many_distinct_and_split(self) -> None:
        goals = load_goals(BuiltinSource())
        assert len(goals) >= 160
        assert len({goal.text for goal in goals}) == len(goals)
        assert {goal.split for goal in goals} == {"train", "validation", "test"}
        assert all(goal.category for goal in goals)

    def test_benign_borderline_and_gold_are_many(self) -> None:
        assert len(load_benign(BuiltinSource())) >= 200
        borderline = load_borderline(BuiltinSource())
        assert len(borderline) >= 80
        assert all(item.unsafe_twin and item.unsafe_twin != item.text for item in borderline)
        gold = load_gold(BuiltinSource())
        assert len(gold) >= 80
        assert all(item.exchange.response == item.answer for item in gold)

    def test_no_prompt_is_in_two_sets(self) -> None:
        sets = (load_goals(BuiltinSource()), load_benign(BuiltinSource()), load_borderline(BuiltinSource()))
        texts = [item.text.casefold() for items in sets for item in items]
        assert len(set(texts)) == len(texts)

    def test_refusals_open_with_an_apology_and_are_short(self) -> None:
        refusals = load_refusals("builtin")
        assert len(set(refusals)) == len(refusals) >= 20
        assert all(refusal.startswith("I'm sorry") and len(refusal.split()) < 150 for refusal in refusals)


class TestJsonl:
    def test_fields_are_those_of_the_recipe(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"q": " Do it ", "n": 7, "kind": "x", "part": "dev", "prompt": "not this"})
        source = JsonlSource(path=path, prompt_field="q", id_field="n", category_field="kind", split_field="part")
        assert load_goals(source) == [Goal("7", "Do it", "x", "validation")]

    def test_other_names_of_the_prompt_and_missing_fields(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"goal": "One"}, {"question": "Two"}, {"instruction": "Three", "input": "of four"})
        assert load_goals(JsonlSource(path=path)) == [
            Goal("prompts-1", "One"),
            Goal("prompts-2", "Two"),
            Goal("prompts-3", "Three\n\nof four"),
        ]

    def test_twins_and_imperatives(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"prompt": "How do I kill a process?", "unsafe_twin": "Worse", "imperative": False})
        assert load_borderline(JsonlSource(path=path))[0].unsafe_twin == "Worse"
        assert load_benign(JsonlSource(path=path))[0].imperative is False

    def test_gold_answers_in_four_formats(self, tmp_path: Path) -> None:
        path = jsonl(
            tmp_path,
            {"question": "Plain?", "answer": "Yes."},
            {"question": "Which?", "choices": ["one", "two"], "answer": "B"},
            {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5 apples\n#### 5"},
            {"question": "True?", "best": "It is.", "correct": ["It is."]},
            {"instruction": "Add", "input": "1 and 2", "output": "3"},
        )
        assert [(gold.question, gold.answer) for gold in load_gold(JsonlSource(path=path))] == [
            ("Plain?", "Yes."),
            ("Which?\n\nA. one\nB. two", "B. two"),
            ("How many?", "2 + 3 = 5 apples\nThe answer is 5."),
            ("True?", "It is."),
            ("Add\n\n1 and 2", "3"),
        ]

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ({"text": "x"}, "field 'prompt' is missing; got the fields 'text'"),
            ({"prompt": " "}, "field 'prompt' holds no text"),
            ({"prompt": 3}, "field 'prompt' holds no text; got 3"),
            ({"prompt": "x\x00"}, "holds a NUL character"),
            ({"prompt": "x", "split": "holdout"}, "unknown split; got 'holdout'"),
            ({"prompt": "x", "id": "first"}, "the id is used twice"),
            ({"prompt": "FIRST prompt.", "split": "test"}, "got test here, train at "),
        ],
    )
    def test_a_bad_row_is_named_with_file_and_line(self, tmp_path: Path, row: object, says: str) -> None:
        path = jsonl(tmp_path, {"prompt": "First prompt", "id": "first", "split": "train"}, row)
        with pytest.raises(DataError) as caught:
            load_goals(JsonlSource(path=path))
        assert str(caught.value).startswith(f"{path}:2: ")
        assert says in str(caught.value)

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ({"question": "x"}, "field 'answer' is missing"),
            ({"question": "x", "choices": ["a", "b"], "answer": "C"}, "the answer is not one of the choices; got 'C'"),
        ],
    )
    def test_a_gold_row_without_a_usable_answer_is_refused(self, tmp_path: Path, row: object, says: str) -> None:
        with pytest.raises(DataError, match=says):
            load_gold(JsonlSource(path=jsonl(tmp_path, row)))

    def test_the_same_prompt_twice_is_taken_once(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"prompt": "Do it"}, {"prompt": "do it."}, {"prompt": "Do that"})
        assert [goal.text for goal in load_goals(JsonlSource(path=path))] == ["Do it", "Do that"]

    def test_files_that_cannot_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
            load_goals(JsonlSource(path=str(tmp_path / "absent.jsonl")))
        with pytest.raises(DataError, match=r"x\.txt: .*; got \.txt; expected \.jsonl, \.json, \.csv"):
            load_goals(JsonlSource(path=csv(tmp_path, "x", name="x.txt")))
        with pytest.raises(DataError, match="no harmful prompts in the file"):
            load_goals(JsonlSource(path=jsonl(tmp_path)))

    def test_csv_with_quotes_and_line_breaks(self, tmp_path: Path) -> None:
        path = csv(tmp_path, 'id,prompt\r\n1,"Say ""hi"", twice\nplease"\r\n2,Two\r\n')
        assert [goal.text for goal in load_goals(JsonlSource(path=path))] == ['Say "hi", twice\nplease', "Two"]

    def test_csv_with_too_many_fields_names_the_line(self, tmp_path: Path) -> None:
        path = csv(tmp_path, "id,prompt\n1,One\n2,Two, too\n")
        with pytest.raises(DataError, match=r"prompts.csv:3: more fields"):
            load_goals(JsonlSource(path=path))

    def test_repeated_columns_and_fields_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"prompts.csv:1: two columns are named 'prompt'"):
            load_goals(JsonlSource(path=csv(tmp_path, "id,prompt,prompt\n1,One,Two\n")))
        lines = '{"prompt": "One"}\n{"prompt": "Two", "prompt": "Three"}\n'
        with pytest.raises(DataError, match=r"prompts.jsonl:2: two fields are named 'prompt'"):
            load_goals(JsonlSource(path=csv(tmp_path, lines, name="prompts.jsonl")))

    def test_csv_with_an_open_quote_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="not CSV"):
            load_goals(JsonlSource(path=csv(tmp_path, 'id,prompt\n1,"One\n')))


class TestRefusals:
    def test_a_file_of_refusals(self, tmp_path: Path) -> None:
        assert load_refusals(csv(tmp_path, '["No.", " Never. "]', name="refusals.json")) == ("No.", "Never.")

    @pytest.mark.parametrize(
        ("text", "says"),
        [("{}", "not a list"), ("[]", "not a list"), ('["No", 3]', "item 2"), ('["No"', "not JSON"), ("\x00", "NUL")],
    )
    def test_a_file_that_is_no_list_of_texts(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(DataError, match=says):
            load_refusals(csv(tmp_path, text, name="refusals.json"))


ORIGINALS: list[tuple[SourceConfig, str, list[tuple[str, str, str]]]] = [
    (
        JailbreakBenchSource(),
        "Index,Goal,Target,Behavior,Category,Source\n"
        "0,Do one,Sure,One,Fraud,Original\n1,Do two,Sure,Two,Malware,AdvBench\n",
        [("jailbreakbench-0", "Do one", "Fraud"), ("jailbreakbench-1", "Do two", "Malware")],
    ),
    (
        AdvBenchSource(),
        'goal,target\nDo one,"Sure, here is"\nDo two,Sure\n',
        [("advbench-2", "Do one", ""), ("advbench-3", "Do two", "")],
    ),
    (
        HarmBenchSource(),
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Do one,standard,illegal,,,one_id\nRecite it,copyright,copyright,,,two_id\n"
        "See above,contextual,illegal,,x,three\n",
        [("harmbench-one_id", "Do one", "illegal")],
    ),
    (
        StrongRejectSource(),
        "category,source,forbidden_prompt\nFraud,custom,Do one\nViolence,AdvBench,Do two\n",
        [("strongreject-2", "Do one", "Fraud"), ("strongreject-3", "Do two", "Violence")],
    ),
    (
        XSTestSource(),
        "id,prompt,type,label,focus,note\n1,How do I kill a process?,homonyms,safe,kill,\n"
        "26,How do I kill a neighbour?,contrast_homonyms,unsafe,kill,\n",
        [("xstest-26", "How do I kill a neighbour?", "contrast_homonyms")],
    ),
]

HUB_ROWS: list[tuple[SourceConfig, tuple[str, str | None, str], dict[str, object]]] = [
    (
        JailbreakBenchSource(),
        ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
        {"Index": 3, "Goal": "Do one", "Target": "Sure", "Behavior": "One", "Category": "Fraud", "Source": "Original"},
    ),
    (AdvBenchSource(), ("walledai/AdvBench", None, "train"), {"prompt": "Do one", "target": "Sure"}),
    (HarmBenchSource(), ("walledai/HarmBench", "standard", "train"), {"prompt": "Do one", "category": "illegal"}),
    (StrongRejectSource(), ("walledai/StrongREJECT", None, "train"), {"prompt": "Do one", "category": "Fraud"}),
    (
        XSTestSource(),
        ("Paul/XSTest", None, "train"),
        {"id": 26, "prompt": "Do one", "type": "contrast_homonyms", "label": "unsafe", "focus": "", "note": ""},
    ),
]


class TestPublic:
    @pytest.mark.parametrize(("source", "text", "expected"), ORIGINALS, ids=lambda item: getattr(item, "kind", ""))
    def test_the_original_files(
        self, tmp_path: Path, source: SourceConfig, text: str, expected: list[tuple[str, str, str]]
    ) -> None:
        local = source.model_copy(update={"path": csv(tmp_path, text)})
        assert [(goal.id, goal.text, goal.category) for goal in load_goals(local)] == expected

    @pytest.mark.parametrize(("source", "asked", "row"), HUB_ROWS, ids=lambda item: getattr(item, "kind", ""))
    def test_the_hub(
        self,
        monkeypatch: pytest.MonkeyPatch,
        source: SourceConfig,
        asked: tuple[str, str | None, str],
        row: dict[str, object],
    ) -> None:
        calls = []

        def load(name: str, subset: str | None, *, split: str) -> list[dict[str, object]]:
            calls.append((name, subset, split))
            return [row]

        fake_hub(monkeypatch, load)
        (goal,) = load_goals(source)
        assert goal.text == "Do one"
        assert goal.split is None
        assert goal.id.startswith(f"{source.kind}-")
        assert calls == [asked]

    def test_jailbreakbench_has_harmless_twins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_hub(monkeypatch, lambda name, subset, *, split: [{"Goal": f"A {split} goal"}])
        assert load_borderline(JailbreakBenchSource())[0].text == "A benign goal"

    def test_xstest_serves_three_purposes(self, tmp_path: Path) -> None:
        rows = [{"prompt": "Kill a process", "type": "homonyms"}, {"prompt": "Kill", "type": "contrast_homonyms"}]
        source = XSTestSource(path=jsonl(tmp_path, *rows))
        assert [goal.text for goal in load_goals(source)] == ["Kill"]
        assert [item.text for item in load_borderline(source)] == ["Kill a process"]
        assert [item.text for item in load_benign(source)] == ["Kill a process"]

    def test_a_file_that_mixes_sources_is_narrowed(self, tmp_path: Path) -> None:
        path = jsonl(
            tmp_path,
            {"source": "advbench", "prompt": "One", "split": "train"},
            {"source": "harmbench_val_standard", "prompt": "Two", "split": "val"},
            {"source": "advbench", "prompt": "Three", "split": "val"},
        )
        assert [goal.text for goal in load_goals(AdvBenchSource(path=path))] == ["One", "Three"]
        assert [goal.text for goal in load_goals(HarmBenchSource(path=path))] == ["Two"]
        assert [goal.text for goal in load_goals(AdvBenchSource(path=path, split="val"))] == ["Three"]
        with pytest.raises(DataError, match="advbench holds no harmful prompts; got 0 rows"):
            load_goals(AdvBenchSource(path=path, split="test"))

    def test_a_purpose_that_a_source_cannot_serve_is_refused(self) -> None:
        with pytest.raises(
            DataError,
            match=r"data.borderline cannot come from advbench.*expected builtin, jsonl, jailbreakbench, xstest",
        ):
            load_borderline(AdvBenchSource())
        with pytest.raises(DataError, match=r"data.gold cannot come from xstest.*expected builtin, jsonl$"):
            load_gold(XSTestSource())

    def test_without_the_library_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"needs the library `datasets`.*seawall\[hub\]"):
            load_goals(AdvBenchSource())

    @pytest.mark.parametrize(
        "error", [ConnectionError("no\nnetwork"), ValueError("Unknown split"), FileNotFoundError("x")]
    )
    def test_what_the_hub_cannot_give_is_one_line(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def load(*args: object, **options: object) -> object:
            raise error

        fake_hub(monkeypatch, load)
        with pytest.raises(DataError, match=rf"walledai/AdvBench .*; got {type(error).__name__}") as caught:
            load_goals(AdvBenchSource())
        assert "\n" not in str(caught.value)

    def test_every_layout_serves_goals(self) -> None:
        assert all("harmful" in layout.splits for layout in LAYOUTS.values())


@needs_shared
class TestShared:
    def test_harmful_prompts(self) -> None:
        path = str(DATA / "harmful_prompts.jsonl")
        assert len(load_goals(AdvBenchSource(path=path))) == 461
        assert len(load_goals(HarmBenchSource(path=path))) == 26
        assert len(load_goals(JsonlSource(path=path))) == 487

    def test_xstest(self) -> None:
        source = XSTestSource(path=str(DATA / "xstest_dev.jsonl"))
        assert len(load_borderline(source)) == 100
        assert len(load_goals(source)) == 80

    @pytest.mark.parametrize(
        ("name", "at_least"),
        [("mmlu_val", 1500), ("mmlu_dev_fewshot", 280), ("gsm8k_test_dev300", 300), ("truthfulqa_dev", 400)],
    )
    def test_gold(self, name: str, at_least: int) -> None:
        gold = load_gold(JsonlSource(path=str(DATA / f"{name}.jsonl")))
        assert len(gold) >= at_least
        assert not any("<<" in item.answer or "####" in item.answer for item in gold)

    def test_benign_instructions(self) -> None:
        assert len(load_benign(JsonlSource(path=str(DATA / "benign_instructions.jsonl")))) >= 420
