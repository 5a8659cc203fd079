"""Safety pairs: one goal asked plainly, and the same goal inside an attack."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Sequence

from seawall.data.attacks import ATTACKS
from seawall.data.chat import ChatRow
from seawall.data.prompts import Goal
from seawall.data.splits import key
from seawall.data.types import SafetyPair, user
from seawall.errors import DataError


def make_pairs(
    goals: Sequence[Goal],
    attacks: Iterable[str],
    attack_rows: Sequence[ChatRow] = (),
    *,
    known: Sequence[Goal] | None = None,
) -> list[SafetyPair]:
    """Every goal under every attack, goal by goal: built-in families first, then the rows of an attack file.

    Args:
        goals: the goals to attack.
        attacks: names of built-in families.
        attack_rows: conversations of an attack file; those of other goals of `known` are passed over.
        known: all goals of the source, when `goals` is a part of it.

    Raises:
        DataError: an unknown family, a row without goal or attack name, or a row whose goal is not among `known`.
    """
    names = list(attacks)
    for name in names:
        if name not in ATTACKS:
            raise DataError("unknown attack family", got=repr(name), expected=", ".join(ATTACKS))
    by_goal = _rows_by_goal(attack_rows, goals if known is None else known)
    pairs = []
    for goal in goals:
        plain = user(goal.text)
        pairs += [SafetyPair(goal.text, plain, ATTACKS[name](goal.text), name) for name in names]
        pairs += [
            SafetyPair(goal.text, plain, row.messages, str(row.attack)) for row in by_goal.get(key(goal.text), ())
        ]
    return pairs


def attack_names(rows: Iterable[ChatRow]) -> tuple[str, ...]:
    """The families of an attack file, in the order they first appear."""
    return tuple(dict.fromkeys(row.attack for row in rows if row.attack is not None))


def refusal_for(goal: str, refusals: Sequence[str]) -> str:
    """The refusal that a goal is trained towards: fixed by a hash, so it is the same in every round and every run."""
    return refusals[int.from_bytes(hashlib.sha256(f"refusal\n{goal}".encode()).digest()[:4], "big") % len(refusals)]


def _rows_by_goal(rows: Sequence[ChatRow], known: Sequence[Goal]) -> dict[str, list[ChatRow]]:
    texts = {key(goal.text): goal.text for goal in known}
    by_goal: dict[str, list[ChatRow]] = {}
    for row in rows:
        _check_row(row, texts)
        by_goal.setdefault(key(str(row.goal)), []).append(row)
    return by_goal


def _check_row(row: ChatRow, texts: dict[str, str]) -> None:
    if row.goal is None or row.attack is None:
        field = "goal" if row.goal is None else "attack"
        raise DataError(
            f"{row.where}: an attack without {field!r}",
            expected="the fields goal, attack and messages",
            remedy="name the plain goal and the attack family in every row",
        )
    if row.attack in ATTACKS:
        raise DataError(
            f"{row.where}: the attack's name is that of a built-in family",
            got=repr(row.attack),
            expected="another name",
            remedy="rename it, so that the two are not counted as one",
        )
    if key(row.goal) not in texts:
        raise DataError(
            f"{row.where}: the goal is not among the harmful goals of this run",
            got=repr(row.goal[:80]),
            expected=_nearest(row.goal, texts),
            remedy="use the goals' own wording, or point data.harmful to the file that holds these goals",
        )


def _nearest(goal: str, texts: dict[str, str]) -> str:
    close = difflib.get_close_matches(key(goal), list(texts), n=1, cutoff=0.6)
    near: Collection[str] = [texts[match] for match in close] or list(texts.values())[:1]
    return f"one of {len(texts)} goals, such as {next(iter(near), '')[:80]!r}"
