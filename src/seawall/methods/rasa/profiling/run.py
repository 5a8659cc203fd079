"""The expert profile: RASA section 3.1 and 3.2 as an algorithm box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.profile import ExpertProfile, PairRecord
from seawall.config.profile import ProfileConfig
from seawall.data.types import Judge, SafetyPair
from seawall.methods.rasa.profiling.counting import count_pairs
from seawall.methods.rasa.profiling.pairs import JudgedPair, keep, write_pairs
from seawall.models.moe.find import MoEModel
from seawall.models.replies import resumable_replies

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
    judged = _ask(moe, tokenizer, pairs, config, judge=judge, scratch=scratch, progress=progress)
    write_pairs(judged, scratch / "pairs.jsonl")
    kept, dropped = keep(judged)
    counts = count_pairs(
        moe,
        kept,
        batch_size=config.batch_size,
        progress=lambda done, total: progress("counting which experts are used", done, total),
    )
    found = ExpertProfile(
        model_fingerprint=fingerprint,
        top_k=moe.top_k,
        pairs=tuple(PairRecord(item.pair.goal, item.pair.attack_name) for item in kept),
        dropped=dropped,
        **counts,
    )
    return ProfileResult(found, tuple(kept))


def _ask(
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SafetyPair],
    config: ProfileConfig,
    *,
    judge: Judge,
    scratch: Path,
    progress: Progress,
) -> list[JudgedPair]:
    """Both replies of every pair, with their verdicts. A request that several attacks wrap is asked plainly once."""
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
    return [
        JudgedPair(pair, replies[(at := anchors[pair.anchor])], replies[i], verdicts[at], verdicts[i])
        for i, pair in enumerate(pairs, start=len(anchors))
    ]
