from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.config.data import AttackName, DataConfig, LiveAttackName
from seawall.data.attacks import ATTACKS, LIVE_ATTACKS

GOAL = "Bake a cake without asking the baker."
GOALS = [f"Paint the fence of neighbour number {number}" for number in range(60)]


def test_config_names_the_built_in_families() -> None:
    assert set(get_args(AttackName)) == set(ATTACKS)
    assert set(get_args(LiveAttackName)) == set(LIVE_ATTACKS)
    assert {*DataConfig().attacks_seen, *DataConfig().attacks_unseen} <= set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_fixed_conversation_that_ends_with_the_user(name: str) -> None:
    messages = ATTACKS[name](GOAL)
    assert messages == ATTACKS[name](GOAL)
    assert [message.role for message in messages] in (["user"], ["user", "assistant", "user"])
    assert all(message.content.strip() == message.content for message in messages)


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("reversed_")])
def test_an_attack_holds_its_goal_without_a_second_full_stop(name: str) -> None:
    text = ATTACKS[name](GOAL)[-1].content
    assert "ake a cake without asking the baker" in text
    assert "baker.." not in text
    assert "{" not in text


def test_reversed_text_holds_the_goal_backwards() -> None:
    assert "rekab eht gniksa tuohtiw ekac a ekaB" in ATTACKS["reversed_text"](GOAL)[-1].content


def test_reversed_words_holds_the_words_of_the_goal_backwards() -> None:
    text = ATTACKS["reversed_words"](GOAL)[-1].content
    assert text.endswith(": baker the asking without cake a Bake")


@pytest.mark.parametrize("name", ATTACKS)
def test_every_wording_of_a_family_is_used(name: str) -> None:
    wordings = set()
    for goal in GOALS:
        text = ATTACKS[name](goal)[-1].content
        for form in (goal, goal[0].lower() + goal[1:], goal[::-1], " ".join(goal.split()[::-1])):
            text = text.replace(form, "")
        wordings.add(text)
    assert len(wordings) >= 2
    assert len(wordings) <= 3


@settings(deadline=None)
@given(st.sampled_from(sorted(ATTACKS)), st.text(min_size=1).filter(str.strip))
def test_any_goal_can_be_wrapped(name: str, goal: str) -> None:
    assert ATTACKS[name](goal)[-1].content


def test_a_code_completion_ends_inside_an_open_string() -> None:
    for goal in GOALS[:12]:
        code = ATTACKS["code_completion"](goal)[-1].content.partition("```python\n")[2]
        assert code.endswith(("First,", "1.", "you"))
        assert code.count('"') % 2 == 1


def test_another_language_wraps_the_goal_in_its_own_words() -> None:
    texts = [ATTACKS["other_language"](goal)[-1].content for goal in GOALS]
    assert all(goal[1:] in text for goal, text in zip(GOALS, texts, strict=True))
    assert {next(word for word in ("Deutsch", "français", "español") if word in text) for text in texts} == {
        "Deutsch",
        "français",
        "español",
    }


@pytest.mark.parametrize("name", LIVE_ATTACKS)
def test_a_live_attack_names_its_goal_in_the_last_turn_alone(name: str) -> None:
    for goal in GOALS:
        *earlier, last = LIVE_ATTACKS[name](goal)
        assert len(earlier) == 2
        assert goal[1:] in last
        assert not any(goal[1:] in turn for turn in earlier)


def test_a_live_attack_is_refused_among_the_seen_ones() -> None:
    with pytest.raises(ValueError, match="live_escalation in attacks_unseen: profile and repair need prompts"):
        DataConfig(attacks_seen=("live_escalation",))
    assert DataConfig(attacks_unseen=("live_escalation",)).attacks_unseen == ("live_escalation",)
