from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.data.prompts import Goal
from seawall.data.splits import SplitName, key, split, take

NAMES: list[SplitName | None] = ["train", "validation", "test", None]


def goals(*names: SplitName | None, each: int = 1) -> list[Goal]:
    return [Goal(f"{at}-{name}", f"goal {at} of {name}", split=name) for name in names for at in range(each)]


def test_named_parts_are_honoured() -> None:
    parts = split(goals("train", "validation", "test", each=5))
    assert [goal.split for goal in parts.train] == ["train"] * 5
    assert [goal.split for goal in parts.validation] == ["validation"] * 5
    assert [goal.split for goal in parts.test] == ["test"] * 5
    assert parts.part("test") == parts.test
    assert len(parts.all) == 15


@pytest.mark.parametrize("name", [None, "train"])
def test_a_source_that_names_none_is_divided_about_60_15_25(name: SplitName | None) -> None:
    parts = split(goals(name, each=2000))
    assert len(parts.train) == pytest.approx(1200, abs=90)
    assert len(parts.validation) == pytest.approx(300, abs=60)
    assert len(parts.test) == pytest.approx(500, abs=80)


def test_without_a_test_part_it_comes_from_validation_never_from_train() -> None:
    parts = split(goals("train", "validation", each=400))
    assert {goal.split for goal in parts.train} == {"train"}
    assert len(parts.train) == 400
    assert {goal.split for goal in parts.test} == {"validation"}
    assert len(parts.test) == pytest.approx(200, abs=40)


def test_without_a_validation_part_it_comes_from_train_never_from_test() -> None:
    parts = split(goals("train", "test", each=400))
    assert len(parts.test) == 400
    assert {goal.split for goal in parts.validation} == {"train"}
    assert len(parts.validation) == pytest.approx(80, abs=30)


def test_a_test_part_alone_stays_one() -> None:
    parts = split(goals("test", each=9))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (0, 0, 9)


@settings(deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=60))
def test_every_item_is_in_exactly_one_part_and_order_is_kept(names: list[SplitName | None]) -> None:
    items = [Goal(str(at), f"goal {at}", split=name) for at, name in enumerate(names)]
    parts = split(items)
    assert sorted(parts.all, key=lambda goal: int(goal.id)) == items
    for part in (parts.train, parts.validation, parts.test):
        assert list(part) == [goal for goal in items if goal in part]


def test_the_place_of_a_goal_depends_on_its_text_alone() -> None:
    items = goals(None, each=200)
    shuffled = random.Random(1).sample(items, len(items))
    assert set(split(items).test) == set(split(shuffled).test)
    louder = [Goal(goal.id, f"  {goal.text.upper()}. ") for goal in items]
    assert [goal.id for goal in split(louder).test] == [goal.id for goal in split(items).test]
    assert key("  Do   THIS now! ") == key("do this now.")


def test_a_cap_takes_a_sample_of_the_whole_file_in_order() -> None:
    items = goals(None, each=100)
    some = take(items, 20)
    assert len(some) == 20
    assert list(some) == [goal for goal in items if goal in some]
    assert set(take(items, 10)) < set(some)
    assert {items.index(goal) // 25 for goal in some} == {0, 1, 2, 3}
    assert take(items, None) == take(items, 100) == take(items, 1000) == tuple(items)
