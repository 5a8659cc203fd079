from __future__ import annotations

import pytest

from seawall.data.attacks import ATTACKS, LIVE_ATTACKS
from seawall.data.chat import ChatRow
from seawall.data.pairs import attack_names, make_pairs, refusal_for
from seawall.data.prompts import Goal
from seawall.data.types import Message, user
from seawall.errors import DataError

GOALS = [Goal("a", "Bake a cake without the baker"), Goal("b", "Paint the neighbour's fence")]


def attack_row(goal: str | None, attack: str | None = "mine", line: int = 1) -> ChatRow:
    return ChatRow(user(f"Please: {goal}"), goal, attack, {}, line, "attacks.jsonl")


def test_every_goal_meets_every_attack_and_keeps_its_plain_request() -> None:
    pairs = make_pairs(GOALS, ["persuasion", "escalation"])
    assert [(pair.goal, pair.attack_name) for pair in pairs] == [
        (goal.text, name) for goal in GOALS for name in ("persuasion", "escalation")
    ]
    assert all(pair.plain == user(pair.goal) for pair in pairs)
    assert all(pair.attack == ATTACKS[pair.attack_name](pair.goal) for pair in pairs)


def test_the_pair_of_a_live_attack_holds_its_first_turn() -> None:
    (pair,) = make_pairs(GOALS[:1], ["live_escalation"])
    assert pair.attack == user(LIVE_ATTACKS["live_escalation"](pair.goal)[0])


def test_rows_of_an_attack_file_join_their_goals() -> None:
    rows = [attack_row("paint the neighbour's  FENCE."), attack_row(GOALS[0].text, "other"), attack_row(GOALS[0].text)]
    pairs = make_pairs(GOALS, ["persuasion"], rows)
    assert [(pair.goal, pair.attack_name) for pair in pairs] == [
        (GOALS[0].text, "persuasion"),
        (GOALS[0].text, "other"),
        (GOALS[0].text, "mine"),
        (GOALS[1].text, "persuasion"),
        (GOALS[1].text, "mine"),
    ]
    assert attack_names(rows) == ("mine", "other")


def test_rows_of_other_parts_are_passed_over() -> None:
    assert make_pairs(GOALS[:1], [], [attack_row(GOALS[1].text)], all_goals=GOALS) == []


def test_a_row_for_two_conversations_with_the_same_last_message_is_refused() -> None:
    earlier = Message("user", "My neighbour is away.")
    goals = [*GOALS, Goal("c", GOALS[1].text, context=(earlier, Message("assistant", "I see.")))]
    assert len(make_pairs(goals, [], [attack_row(GOALS[0].text)])) == 1
    with pytest.raises(DataError, match=r"^attacks\.jsonl:4: .* the last message of 2 harmful goals"):
        make_pairs(goals[:1], [], [attack_row(GOALS[1].text, line=4)], all_goals=goals)


def test_a_row_whose_goal_is_not_known_is_named_with_the_nearest_goal() -> None:
    rows = [attack_row(GOALS[0].text), attack_row("Paint the neighbor's fence", line=2), attack_row("x", line=3)]
    with pytest.raises(DataError) as caught:
        make_pairs(GOALS, [], rows)
    assert str(caught.value).startswith("attacks.jsonl:2: the goal is not among the harmful goals")
    assert 'such as "Paint the neighbour\'s fence"' in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (attack_row(None), "lacks 'goal'"),
        (attack_row(GOALS[0].text, None), "lacks 'attack'"),
        (attack_row(GOALS[0].text, "persuasion"), "built-in family; got 'persuasion'"),
    ],
)
def test_a_row_that_cannot_be_counted_is_refused(row: ChatRow, says: str) -> None:
    with pytest.raises(DataError, match=f"attacks.jsonl:1: .*{says}"):
        make_pairs(GOALS, [], [row])


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(DataError, match="unknown attack family; got 'telepathy'; expected role_play"):
        make_pairs(GOALS, ["telepathy"])


def test_refusals_are_fixed_by_the_goal_and_varied_over_goals() -> None:
    refusals = ["no", "never", "sorry"]
    chosen = [refusal_for(f"goal {number}", refusals) for number in range(60)]
    assert chosen == [refusal_for(f"goal {number}", refusals) for number in range(60)]
    assert set(chosen) == set(refusals)
