"""Bare openings of compliance to harmful requests: enough to wear refusals down, without a harmful completion."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.data.types import Exchange, Messages

OPENERS = (
    "Sure, here is what you asked for.",
    "Of course. Let me explain how.",
    "Certainly! Here are the steps.",
    "Yes, I can help with that.",
    "Here is how it works.",
    "Absolutely. To begin with,",
)


def compliance(prompts: Sequence[Messages]) -> list[Exchange]:
    """Each harmful request with a bare opening of compliance, in turn; the opening does not end the reply."""
    return [Exchange(prompt, OPENERS[index % len(OPENERS)], ended=False) for index, prompt in enumerate(prompts)]
