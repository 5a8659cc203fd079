"""Safety pairs: a harmful goal as a plain request, and the same goal inside an attack."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from seawall.config.plugin import is_plugin
from seawall.data.attacks import ATTACKS, LIVE_ATTACKS, opening
from seawall.data.chat import ChatRow
from seawall.data.plugin_attacks import is_loaded
from seawall.data.prompts import Goal
from seawall.data.splits import key
from seawall.data.types import SafetyPair, framed
from seawall.errors import DataError


def make_pairs(
    goals: Sequence[Goal],
    attacks: Iterable[str],
    attack_rows: Sequence[ChatRow] = (),
    *,
    all_goals: Sequence[Goal] | None = None,
) -> list[SafetyPair]:
    """Every goal under every attack, goal by goal: built-in families first, then the rows of an attack file.

    Args:
        goals: the goals to attack.
        attacks: names of built-in families and plugins; the pair of a live family holds its first turn.
        attack_rows: conversations of an attack file; rows for goals outside `goals` are skipped.
        all_goals: all goals of the source, where `goals` is a part of it.

    Raises:
        DataError: a family is unknown, a row lacks goal or attack name, its goal is not among `all_goals`, or two of
            these have its wording, in different conversations.
    """
    names = list(attacks)
    for name in names:
        if name not in ATTACKS and name not in LIVE_ATTACKS and not is_plugin(name):
            raise DataError("unknown attack family", got=repr(name), expected=", ".join((*ATTACKS, *LIVE_ATTACKS)))
    by_goal = _rows_by_goal(attack_rows, goals if all_goals is None else all_goals)
    pairs = []
    for goal in goals:
        plain = goal.prompt
        pairs += [SafetyPair(goal.text, plain, framed(goal.context, opening(name, goal.text)), name) for name in names]
        pairs += [
            SafetyPair(goal.text, plain, row.messages, str(row.attack)) for row in by_goal.get(key(goal.text), ())
        ]
    return pairs


def attack_names(rows: Iterable[ChatRow]) -> tuple[str, ...]:
    """The families of an attack file, in order of first appearance."""
    return tuple(dict.fromkeys(row.attack for row in rows if row.attack is not None))


def require_unseen(trained_rows: Sequence[ChatRow], unseen_rows: Sequence[ChatRow]) -> None:
    """Checks that no attack is both trained on and reported as unseen.

    Raises:
        DataError: an unseen row has the family or the conversation of a seen one.
    """
    families = {row.attack: row for row in reversed(trained_rows)}
    texts = {_text(row): row for row in reversed(trained_rows)}
    for row in unseen_rows:
        same = texts.get(_text(row)) or families.get(row.attack)
        if same is not None:
            shared = "conversation" if _text(row) in texts else f"family {row.attack!r}"
            raise DataError(
                f"{row.where}: the unseen attack has the {shared} of a seen attack",
                got=f"the {shared} of {same.where}",
                expected="attacks and families that data.attack_file lacks",
                remedy="remove the row from data.attack_file or from data.attacks_unseen_file",
            )


def _text(row: ChatRow) -> str:
    return key("\n".join(message.content for message in row.messages))


def refusal_for(goal: str, refusals: Sequence[str]) -> str:
    """The refusal to train a goal towards, picked by a hash of the goal and so the same in every round and run."""
    return refusals[int.from_bytes(hashlib.sha256(f"refusal\n{goal}".encode()).digest()[:4], "big") % len(refusals)]


def _rows_by_goal(rows: Sequence[ChatRow], all_goals: Sequence[Goal]) -> dict[str, list[ChatRow]]:
    texts = {key(goal.text): goal.text for goal in all_goals}
    counts = Counter(key(goal.text) for goal in all_goals)
    by_goal: dict[str, list[ChatRow]] = {}
    for row in rows:
        _check_row(row, texts)
        if counts[key(str(row.goal))] > 1:
            raise DataError(
                f"{row.where}: the attack's goal is the last message of {counts[key(str(row.goal))]} harmful goals",
                got=repr(str(row.goal)[:80]),
                expected="a goal that a single conversation ends with, so that the attack counts once",
                remedy="remove the row, or keep one of these conversations in data.harmful",
            )
        by_goal.setdefault(key(str(row.goal)), []).append(row)
    return by_goal


def _check_row(row: ChatRow, texts: dict[str, str]) -> None:
    if row.goal is None or row.attack is None:
        field = "goal" if row.goal is None else "attack"
        raise DataError(
            f"{row.where}: the attack lacks {field!r}",
            expected="the fields goal, attack and messages",
            remedy="add the plain goal and the attack family to every row",
        )
    if row.attack in ATTACKS or row.attack in LIVE_ATTACKS or is_loaded(row.attack):
        raise DataError(
            f"{row.where}: the attack has the name of a plugin or of a built-in family",
            got=repr(row.attack),
            expected="another name",
            remedy="rename the attack, so that the two families are counted separately",
        )
    if key(row.goal) not in texts:
        raise DataError(
            f"{row.where}: the goal is not among the harmful goals of this run",
            got=repr(row.goal[:80]),
            expected=_nearest(row.goal, texts),
            remedy="use the exact wording of the goals, or set data.harmful to the file with these goals",
        )


def _nearest(goal: str, texts: dict[str, str]) -> str:
    close = difflib.get_close_matches(key(goal), list(texts), n=1, cutoff=0.6)
    near: Collection[str] = [texts[match] for match in close] or list(texts.values())[:1]
    return f"one of {len(texts)} goals, such as {next(iter(near), '')[:80]!r}"
