"""The expert profile: RASA section 3.1 and 3.2 as an algorithm box."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.profile import ExpertProfile, PairRecord
from seawall.config.profile import ProfileConfig
from seawall.data.types import Judge, SafetyPair
from seawall.models.find import MoEModel
from seawall.models.replies import resumable_replies
from seawall.profiling.counting import count_routing
from seawall.profiling.pairs import JudgedPair, keep

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class ProfileResult:
    """The profile, and the pairs that it counts in the same order."""

    profile: ExpertProfile
    kept: tuple[JudgedPair, ...]


def profile(
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SafetyPair],
    config: ProfileConfig,
    *,
    judge: Judge,
    fingerprint: str,
    scratch: Path,
    progress: Progress,
) -> ProfileResult:
    """Asks every goal plainly and by attack, keeps the successful jailbreaks, and counts where their tokens go.

    Args:
        moe: the model.
        tokenizer: its tokenizer.
        pairs: the goals and their attacks.
        config: lengths and batch size.
        judge: decides refused or complied.
        fingerprint: the model's, written into the profile.
        scratch: folder for replies, so that an interrupted profile goes on; `pairs.jsonl` is left there.
        progress: told about batches.

    Raises:
        NothingToRepairError: no pair is kept.
    """
    anchors = {anchor: at for at, anchor in enumerate(dict.fromkeys(pair.anchor for pair in pairs))}
    prompts = [*anchors, *(pair.attack for pair in pairs)]
    replies = resumable_replies(
        moe.model,
        tokenizer,
        prompts,
        scratch / "replies.jsonl",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=lambda done, total: progress("asking plainly and by attack", done, total),
    )
    verdicts = judge(prompts, [reply.text for reply in replies])
    judged = [
        JudgedPair(pair, replies[(at := anchors[pair.anchor])], replies[i], verdicts[at], verdicts[i])
        for i, pair in enumerate(pairs, start=len(anchors))
    ]
    _write_pairs(judged, scratch / "pairs.jsonl")
    kept, dropped = keep(judged)
    sides = [[item.attack for item in kept], [item.anchor for item in kept]]
    counted = [
        count_routing(
            moe,
            side,
            batch_size=config.batch_size,
            progress=lambda done, total: progress("counting experts", done, total),
        )
        for side in sides
    ]
    (attack_prompt, attack), (anchor_prompt, anchor) = counted
    found = ExpertProfile(
        model_fingerprint=fingerprint,
        top_k=moe.top_k,
        pairs=tuple(PairRecord(item.pair.goal, item.pair.attack_name) for item in kept),
        dropped=dropped,
        attack_tokens_P=attack.tokens_P,
        attack_counts_PLE=attack.counts_PLE,
        attack_mass_PLE=attack.mass_PLE,
        anchor_tokens_P=anchor.tokens_P,
        anchor_counts_PLE=anchor.counts_PLE,
        anchor_mass_PLE=anchor.mass_PLE,
        attack_prompt_tokens_P=attack_prompt.tokens_P,
        attack_prompt_counts_PLE=attack_prompt.counts_PLE,
        attack_prompt_mass_PLE=attack_prompt.mass_PLE,
        anchor_prompt_tokens_P=anchor_prompt.tokens_P,
        anchor_prompt_counts_PLE=anchor_prompt.counts_PLE,
        anchor_prompt_mass_PLE=anchor_prompt.mass_PLE,
    )
    return ProfileResult(found, tuple(kept))


def _write_pairs(judged: Sequence[JudgedPair], path: Path) -> None:
    """Every pair with replies, verdicts and why it was dropped, for people to read and for the repair to use."""
    with path.open("w", encoding="utf-8") as file:
        for item in judged:
            row = {
                "goal": item.pair.goal,
                "attack_name": item.pair.attack_name,
                "anchor": [message.as_dict() for message in item.pair.anchor],
                "attack": [message.as_dict() for message in item.pair.attack],
                "anchor_reply": item.anchor.text,
                "attack_reply": item.attack.text,
                "dropped": item.reason_to_drop,
            }
            file.write(json.dumps(row) + "\n")
