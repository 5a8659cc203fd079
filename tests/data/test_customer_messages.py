"""The shipped task: enough rows, balanced, of our own and apart from what is scored."""

from __future__ import annotations

import re
from collections import Counter

from seawall.data.customer_messages import CLASSES, customer_messages
from seawall.data.splits import key


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", text.lower()))


def test_rows_are_enough_and_balanced() -> None:
    found = customer_messages()
    assert (len(found.train), len(found.test)) == (260, 140)
    for part in (found.train, found.test):
        counts = Counter(row.response for row in part)
        assert counts.keys() == set(CLASSES)
        assert len(set(counts.values())) == 1


def test_the_prompt_names_the_classes_and_holds_the_message() -> None:
    row = customer_messages().train[0]
    (turn,) = row.prompt
    assert turn.role == "user"
    assert "account, delivery, payment, product or return? Answer with one word." in turn.content
    assert turn.content.endswith(f"Message: {row.goal}")


def test_no_message_is_another_with_words_swapped() -> None:
    found = customer_messages()
    rows = [*found.train, *found.test]
    assert len({key(row.goal) for row in rows}) == 400
    sets = [words(row.goal) for row in rows]
    alike = [
        (rows[at].goal, rows[other].goal)
        for at, one in enumerate(sets)
        for other in range(at)
        if len(one & sets[other]) > 0.5 * len(one | sets[other])
    ]
    assert not alike
