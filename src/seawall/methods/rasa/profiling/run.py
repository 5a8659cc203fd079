"""The expert profile: RASA section 3.1 and 3.2 as an algorithm box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.profile import ExpertProfile, PairRecord
from seawall.config.profile import ProfileConfig
from seawall.data.types import Judge, SafetyPair
from seawall.methods.rasa.profiling.counting import count_pairs
from seawall.methods.rasa.profiling.pairs import JudgedPair, filter_pairs, write_pairs
from seawall.models.decoding import Completion, Decoder
from seawall.models.generate import our_loop
from seawall.models.moe.find import MoEModel
from seawall.models.replies import resumable_replies

Progress = Callable[[str, int, int], None]
"""(what is in progress, count, total) -> None."""


@dataclass(frozen=True)
class ProfileResult:
    """The profile, and its kept pairs in the same order."""

    profile: ExpertProfile
    pairs: tuple[JudgedPair, ...]


def profile(  # noqa: PLR0913 - the decoder is one more
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SafetyPair],
    config: ProfileConfig,
    *,
    judge: Judge,
    fingerprint: str,
    scratch: Path,
    progress: Progress,
    decoder: Decoder = our_loop,
) -> ProfileResult:
    """Asks every goal plainly and by attack, keeps the successful jailbreaks, and counts how their tokens are routed.

    Two passes: any engine may generate the replies; the local weights count, by one forward pass over each finished
    reply.

    Args:
        moe: the model.
        tokenizer: of the model.
        pairs: the goals and their attacks.
        config: lengths and batch size.
        judge: decides refused or complied.
        fingerprint: of the model, for the artifact.
        scratch: folder of replies, which an interrupted profile resumes from, and of `pairs.jsonl`.
        progress: called after each batch.
        decoder: generates the replies.

    Raises:
        NothingToRepairError: no pair is kept.
    """
    # Section 3.1: keep a pair if the model refuses the plain request and answers the attack.
    replies_of = partial(resumable_replies, moe.model, tokenizer, decoder=decoder)
    judged = _judged_pairs(replies_of, pairs, config, judge=judge, scratch=scratch, progress=progress)
    write_pairs(judged, scratch / "pairs.jsonl")
    kept, dropped = filter_pairs(judged)
    # Section 3.2: P(e in top-K) of attack and of plain request, over generated tokens (and over prompts, apart).
    counts = count_pairs(
        moe,
        kept,
        batch_size=config.batch_size,
        progress=lambda count, total: progress("counting which experts are used", count, total),
    )
    artifact = ExpertProfile(
        model_fingerprint=fingerprint,
        top_k=moe.top_k,
        pairs=tuple(PairRecord(item.pair.goal, item.pair.attack_name) for item in kept),
        dropped=dropped,
        **counts,
    )
    return ProfileResult(artifact, tuple(kept))


def _judged_pairs(
    replies_of: Callable[..., list[Completion]],
    pairs: Sequence[SafetyPair],
    config: ProfileConfig,
    *,
    judge: Judge,
    scratch: Path,
    progress: Progress,
) -> list[JudgedPair]:
    """Both replies of every pair, with their verdicts. A request that several attacks wrap is asked plainly once."""
    plain_rows = {plain: row for row, plain in enumerate(dict.fromkeys(pair.plain for pair in pairs))}
    prompts = [*plain_rows, *(pair.attack for pair in pairs)]
    replies = replies_of(
        prompts,
        scratch / "replies.jsonl",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=lambda count, total: progress("asking plainly and by attack", count, total),
    )
    goals = [*(plain[-1].content for plain in plain_rows), *(pair.goal for pair in pairs)]
    verdicts = judge(prompts, [reply.answer for reply in replies], goals)
    judged = []
    for attack_row, pair in enumerate(pairs, start=len(plain_rows)):
        row = plain_rows[pair.plain]
        judged.append(
            JudgedPair(pair, replies[row], replies[attack_row], verdicts[row], verdicts[attack_row], config.successes)
        )
    return judged
