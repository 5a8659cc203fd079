"""Replies that survive an interruption: every finished batch is on disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.types import Messages
from seawall.models.generate import BatchSize, Completion, generate


def resumable_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    path: Path,
    *,
    max_new_tokens: int,
    batch_size: BatchSize,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """`generate`, with replies appended to `path` batch by batch; a second call goes on where the first stopped.

    The caller vouches that `path` belongs to the same model, prompts and settings (a stage's fingerprint does).
    """
    found = _read(path)
    missing = [at for at in range(len(prompts)) if at not in found]
    with path.open("a", encoding="utf-8") as file:

        def keep(positions: Sequence[int], replies: Sequence[Completion]) -> None:
            for at, reply in zip(positions, replies, strict=True):
                found[missing[at]] = reply
                row = {"at": missing[at], "text": reply.text, "ended": reply.ended}
                row |= {"token_ids": list(reply.token_ids), "prompt_ids": list(reply.prompt_ids)}
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            if progress is not None:
                progress(len(found), len(prompts))

        generate(
            model,
            tokenizer,
            [prompts[at] for at in missing],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_batch=keep,
        )
    return [found[at] for at in range(len(prompts))]


def _read(path: Path) -> dict[int, Completion]:
    """What an earlier call left; a last line that was cut is taken off the file."""
    if not path.is_file():
        return {}
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    with path.open("wb") as file:
        file.write(whole + b"\n" if whole else b"")
    found = {}
    for line in whole.decode().split("\n") if whole else ():
        row = json.loads(line)
        found[row["at"]] = Completion(row["text"], tuple(row["token_ids"]), tuple(row["prompt_ids"]), row["ended"])
    return found
