"""Harmless twins of attacks: the same wrapping, word for word, around a request that should be answered.

An attack and its twin differ in what is asked alone, so a repair that refuses the one and answers the other has learned
to tell contents apart, and not to refuse a wrapping.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from seawall.data.attacks import as_command, attack_of, goal_forms, rewraps
from seawall.data.types import Messages, SafetyPair, framed, user


@dataclass(frozen=True, slots=True)
class Twin:
    """A harmless request, plainly and inside an attack's wrapping."""

    plain: Messages
    prompt: Messages


def in_same_wrapping(pair: SafetyPair, request: str) -> Messages | None:
    """A harmless request inside the wrapping of an attack.

    The goal's text is replaced in the attack, in every form. A built-in family or a plugin that disguises the text
    itself wraps the request anew.

    Returns:
        None where a prepared attack does not contain its goal word for word, or contains it in another case too: the
        twin would ask for the goal.
    """
    command, messages = as_command(request), pair.attack
    for old, new in zip(goal_forms(pair.goal), goal_forms(command), strict=True):
        messages = tuple(replace(message, content=message.content.replace(old, new)) for message in messages)
    if messages == pair.attack:
        return framed(pair.attack, attack_of(pair.attack_name)(command)) if rewraps(pair.attack_name) else None
    _, goal, _ = goal_forms(pair.goal)
    return None if any(goal.casefold() in message.content.casefold() for message in messages) else messages


def twins_of(
    pairs: Sequence[SafetyPair], kinds: Sequence[Sequence[str]], *, per_pair: int, seed: int
) -> list[tuple[Twin, ...]]:
    """For each pair, `per_pair` harmless requests in its wrapping; fewer where the wrapping cannot be reused.

    Args:
        pairs: the attacks.
        kinds: harmless requests by kind, such as borderline and benign, which take turns; empty kinds are left out.
        per_pair: twins of each attack.
        seed: of the order of the requests; each is used once before any is used again.
    """
    streams = [_endless(requests, seed) for requests in kinds if requests]
    if not streams:
        return [() for _ in pairs]
    turn, result = 0, []
    for pair in pairs:
        requests = []
        for _ in range(per_pair):
            requests.append(next(streams[turn % len(streams)]))
            turn += 1
        wrapped = [(user(request), in_same_wrapping(pair, request)) for request in requests]
        result.append(tuple(Twin(plain, prompt) for plain, prompt in wrapped if prompt is not None))
    return result


def _endless(requests: Sequence[str], seed: int) -> Iterator[str]:
    """Shuffled passes over the requests."""
    generator = random.Random(f"seawall twins of seed {seed}")
    while True:
        yield from generator.sample(list(requests), len(requests))
