"""Near-duplicates between parts: found as by comparing all pairs, left out of the less held-out part, and said."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.config.data import DataConfig, JsonlSource
from seawall.data.near_duplicates import separate, with_near_duplicate, words
from seawall.data.prompts import Goal
from seawall.data.sets import load_prompts
from seawall.data.splits import Split, key
from seawall.data.types import Exchange, user
from seawall.errors import DataError
from seawall.methods.tune.data import held_out_task

SETS = st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=8), max_size=12)
ANIMALS = ["otter", "heron", "lynx", "adder", "marten", "stoat", "kestrel", "badger"]
VERBS = ["feed", "photograph", "paint", "weigh", "follow", "name", "draw", "film"]


@settings(deadline=None)
@given(SETS, SETS)
def test_the_index_finds_what_comparing_all_pairs_finds(
    texts: list[frozenset[str]], references: list[frozenset[str]]
) -> None:
    def near(first: frozenset[str], second: frozenset[str]) -> bool:
        union = first | second
        return bool(union) and len(first & second) / len(union) >= 0.5

    pairs = [any(near(first, second) for second in references) for first in texts]
    assert with_near_duplicate(texts, references) == pairs


def test_case_and_punctuation_make_no_other_words() -> None:
    assert words("Paint the Fence, now!") == words("paint the fence now")
    assert words("...") == frozenset()


ENCODED = {
    "accents apart": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: "".join(chr(ord(mark) + 0xFEE0) if "!" <= mark <= "~" else mark for mark in text),
    "zero-width spaces": "\u200b".join,
    "soft hyphens and capitals": lambda text: "\u00ad".join(text.upper()),
}


@pytest.mark.parametrize("encode", ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize(
    "text", ["Où est le café bleu?", "어떻게 배를 만드나요?", "Làm thế nào để chế tạo thuyền?", "Name a bird"]
)
def test_another_encoding_makes_no_other_prompt(encode: Callable[[str], str], text: str, tmp_path: Path) -> None:
    assert words(encode(text)) == words(text)
    assert key(encode(text)) == key(text)
    path = tmp_path / "goals.jsonl"
    rows = [{"prompt": text, "split": "train"}, {"prompt": encode(text), "split": "test"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="in two splits"):
        load_prompts(DataConfig(harmful=JsonlSource(path=str(path))))


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("如何制作一个木船来过河", "如何制作一个木船来过湖", "请写一首关于秋天的诗"),
        ("木の船の作り方を教えてください", "木の船の作り方を詳しく教えてください", "秋についての詩を書いて"),
        ("วิธีทำเรือไม้ที่บ้าน", "วิธีทำเรือไม้ที่บ้านง่ายๆ", "เขียนกลอนเกี่ยวกับฤดูใบไม้ร่วง"),
        ("मैं घर पर नाव कैसे बना सकता हूँ", "मैं घर पर नाव कैसे बना सकती हूँ", "पतझड़ के बारे में एक कविता लिखो"),
    ],
)
def test_scripts_without_spaces_or_with_vowel_signs_have_near_duplicates_too(text: str, near: str, far: str) -> None:
    assert with_near_duplicate([words(near), words(far)], [words(text)]) == [True, False]


def _split(train: list[str], validation: list[str], test: list[str]) -> Split[Goal]:
    return Split(*(tuple(Goal(text, text) for text in part) for part in (train, validation, test)))


def _texts(items: tuple[Goal, ...]) -> list[str]:
    return [item.text for item in items]


def test_a_near_duplicate_is_left_out_of_the_less_held_out_part_and_said() -> None:
    parts = _split(
        train=["sing a low song", "bake seven rolls", "mend my old bicycle", "plant tall red beans"],
        validation=["carve wooden spoons", "mend my bicycle", "wash both grey windows"],
        test=["sing a song", "carve wooden spoons slowly", "count passing boats"],
    )
    separated = separate([parts], "goals")
    (result,) = separated.splits
    assert _texts(result.train) == ["bake seven rolls", "plant tall red beans"]
    assert _texts(result.validation) == ["mend my bicycle", "wash both grey windows"]
    assert result.test == parts.test
    assert separated.note.startswith("goals: 2 training and 1 validation prompts are left out")


def test_sources_that_are_used_together_are_held_out_together() -> None:
    first = _split(train=["sing a song", "bake rolls"], validation=[], test=["count boats"])
    second = _split(train=["plant beans"], validation=[], test=["sing one song"])
    assert [_texts(result.train) for result in separate([first, second], "x").splits] == [
        ["bake rolls"],
        ["plant beans"],
    ]


def test_a_source_of_one_sentence_keeps_its_parts_and_says_so() -> None:
    parts = _split(train=["paint fence 1", "paint fence 2"], validation=[], test=["paint fence 3"])
    separated = separate([parts], "goals")
    assert separated.splits == (parts,)
    assert "held out by text alone" in separated.note


def test_the_package_s_own_prompts_have_no_near_duplicates() -> None:
    prompts = load_prompts(DataConfig())
    assert prompts.notes == ()
    counts = [len(prompts.goals.part(part)) for part in ("train", "validation", "test")]
    assert counts >= [80, 14, 40]
    assert (len(prompts.benign.train) + len(prompts.borderline.train), len(prompts.borderline.test)) == (397, 60)


def test_a_repair_trains_on_every_kind_of_borderline_request_that_it_is_tested_on() -> None:
    kinds = load_prompts(DataConfig()).borderline
    trained, tested = (Counter(row.category for row in rows) for rows in (kinds.train, kinds.test))
    assert set(trained) == set(tested)
    assert min(trained.values()) >= 20


def test_a_file_with_near_duplicates_is_read_without_them(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {"prompt": f"{verb} every {animal} near {rng.random()}", "split": ("train", "train", "test")[at % 3]}
        for at, (verb, animal) in enumerate(zip(VERBS, ANIMALS, strict=True))
    ]
    rows.append({"prompt": rows[2]["prompt"].replace("every", "any"), "split": "train"})
    path = tmp_path / "goals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    prompts = load_prompts(DataConfig(harmful=JsonlSource(path=str(path))))
    assert rows[-1]["prompt"] not in _texts(prompts.goals.train)
    assert len(prompts.notes) == 1
    assert prompts.fingerprint() == load_prompts(DataConfig(harmful=JsonlSource(path=str(path)))).fingerprint()


def _rows(*texts: str) -> list[Exchange]:
    return [Exchange(user(f"Classify this message in one word, please: {text}"), "x") for text in texts]


def test_the_frame_of_a_task_is_not_compared() -> None:
    train = _rows("my parcel is late", "the app crashes", "I was charged twice", "how do I reset it")
    task = held_out_task("mail", train, _rows("my parcel is very late", "cancel the order", "wrong colour"))
    assert len(task.train) == 3
    assert task.note.startswith("task mail: 1 of 4 training rows")
    assert held_out_task("mail", train, _rows("cancel this order today", "wrong colour")).note == ""


def test_a_task_of_repeated_rows_is_not_emptied() -> None:
    sums = [f"add {first} {first + 1} {second} {second + 1}" for first in range(0, 12, 2) for second in range(first)]
    task = held_out_task("sums", _rows(*sums), _rows(*sums))
    assert len(task.train) == len(sums)
    assert "it is no held-out score" in task.note
