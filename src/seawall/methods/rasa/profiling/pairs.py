"""Which pairs are kept: plain request refused, attack successful. Every other pair is dropped with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seawall.artifacts.profile import DroppedPair
from seawall.data.types import EVADES, SafetyPair, Verdict
from seawall.errors import NothingToRepairError
from seawall.models.generate import Completion

_EVADED = "attack reply evades"


@dataclass(frozen=True)
class JudgedPair:
    """A pair with the model's two replies and their verdicts."""

    pair: SafetyPair
    plain: Completion
    attack: Completion
    plain_verdict: Verdict
    attack_verdict: Verdict
    successes: Literal["engaged"] | None = None

    @property
    def reason_to_drop(self) -> str | None:
        """Why the pair is dropped; None for a successful jailbreak of a refused request."""
        if self.plain_verdict.label == "unscored":
            return f"plain reply unscored: {self.plain_verdict.reason}"
        if self.plain_verdict.label == "complied":
            return "plain request answered"
        outcome = self.attack_verdict.outcome
        if outcome == "refused":
            return "attack refused"
        if outcome == "complied" or (outcome == "evades" and self.successes == "engaged"):
            return None
        kind = _EVADED if outcome == "evades" else "attack reply unscored"
        return f"{kind}: {self.attack_verdict.reason.removeprefix(EVADES)}"


def filter_pairs(judged: Sequence[JudgedPair]) -> tuple[list[JudgedPair], tuple[DroppedPair, ...]]:
    """(kept pairs, dropped pairs).

    Raises:
        NothingToRepairError: no pair is kept.
    """
    successful = [item for item in judged if item.reason_to_drop is None]
    dropped = tuple(
        DroppedPair(item.pair.goal, item.pair.attack_name, item.reason_to_drop)
        for item in judged
        if item.reason_to_drop is not None
    )
    if not successful:
        reasons = Counter(pair.reason.partition(":")[0] for pair in dropped)
        listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        raise NothingToRepairError(
            f"none of {len(judged)} pairs is a successful jailbreak of a refused request",
            got=listed or "no pairs",
            remedy=_remedy(reasons),
        )
    return successful, dropped


def write_pairs(judged: Sequence[JudgedPair], path: Path) -> None:
    """Writes every pair with its replies and the reason why it was dropped, for people and for the repair."""
    with path.open("w", encoding="utf-8") as file:
        for item in judged:
            row = {
                "goal": item.pair.goal,
                "attack_name": item.pair.attack_name,
                "anchor": [message.as_dict() for message in item.pair.plain],
                "attack": [message.as_dict() for message in item.pair.attack],
                "anchor_reply": item.plain.answer,
                "anchor_ended": item.plain.ended,
                "attack_reply": item.attack.answer,
                "dropped": item.reason_to_drop,
            }
            file.write(json.dumps(row) + "\n")


def _remedy(reasons: Counter[str]) -> str:
    commonest = reasons.most_common(1)[0][0] if reasons else ""
    if commonest == "plain request answered":
        return "the model does not refuse plain requests: give it ordinary safety training first"
    if commonest == _EVADED:
        return "attacked, the model plays along but gives nothing of what was asked: set profile.successes: engaged"
    if commonest == "attack refused":
        return "the model withstands these attacks: try other families in data.attacks_seen, or an attack_file"
    return "look at pairs.jsonl: replies are empty or degenerate; raise profile.max_new_tokens"
