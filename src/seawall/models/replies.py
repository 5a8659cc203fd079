"""Generation that survives an interruption: every finished batch is on disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.types import Messages
from seawall.models.decoding import Decoder
from seawall.models.generate import BatchSize, Completion, generate, our_loop

_OPTIONAL = ("thought", "unscored", "opened")
"""Fields that a line has only where they are not empty."""


def resumable_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    path: Path,
    *,
    max_new_tokens: int,
    batch_size: BatchSize,
    decoder: Decoder = our_loop,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """`generate`, with completions appended to `path` batch by batch; a second call resumes where the first stopped.

    The caller ensures that `path` belongs to the same model, prompts and settings (a stage's fingerprint does).
    """
    completions = _read(path)
    missing = [index for index in range(len(prompts)) if index not in completions]
    with path.open("a", encoding="utf-8") as file:

        def save(positions: Sequence[int], batch: Sequence[Completion]) -> None:
            indices = [missing[position] for position in positions]
            completions.update(zip(indices, batch, strict=True))
            file.writelines(_to_line(index, completions[index]) for index in indices)
            file.flush()
            os.fsync(file.fileno())
            if progress is not None:
                progress(len(completions), len(prompts))

        generate(
            model,
            tokenizer,
            [prompts[index] for index in missing],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decoder=decoder,
            on_batch=save,
        )
    return [completions[index] for index in range(len(prompts))]


def _to_line(index: int, completion: Completion) -> str:
    row: dict[str, object] = {"at": index, "text": completion.answer, "ended": completion.ended}
    row |= {name: value for name in _OPTIONAL if (value := getattr(completion, name))}
    row |= {"token_ids": list(completion.token_ids), "prompt_ids": list(completion.prompt_ids)}
    return json.dumps(row) + "\n"


def _read(path: Path) -> dict[int, Completion]:
    """The completions of an earlier call; an incomplete last line is removed from the file."""
    if not path.is_file():
        return {}
    content, _, _ = path.read_bytes().rpartition(b"\n")
    with path.open("wb") as file:
        file.write(content + b"\n" if content else b"")
    rows = map(json.loads, content.decode().split("\n") if content else ())
    return {
        row["at"]: Completion(
            row["text"],
            tuple(row["token_ids"]),
            tuple(row["prompt_ids"]),
            row["ended"],
            **{name: row[name] for name in _OPTIONAL if name in row},
        )
        for row in rows
    }
