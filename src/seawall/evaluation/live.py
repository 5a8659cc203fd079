"""Conversations of live attacks, built turn by turn from the model's own greedy replies.

Each reply is on disk before the next turn is asked, so that an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from seawall.config.eval import EvalConfig
from seawall.data.types import Message
from seawall.errors import ArtifactError
from seawall.evaluation.engines import Engine, Reply
from seawall.evaluation.suite import EvalPrompt
from seawall.evaluation.unanswered import require_replies
from seawall.runs.files import write_text


@dataclass(frozen=True, slots=True)
class Conversations:
    """Prompts of a suite, live ones with the model's replies in between.

    Attributes:
        prompts: of the suite, in order; each ends with the last user turn, or the turn that got no reply.
        problems: id of a prompt whose conversation broke off -> why.
    """

    prompts: tuple[EvalPrompt, ...]
    problems: Mapping[str, str]


def hold_conversations(
    engine: Engine, prompts: Sequence[EvalPrompt], config: EvalConfig, path: Path, *, batch_size: int
) -> Conversations:
    """Asks the turns of live prompts, one after the other; prompts without further turns are returned as they are.

    Args:
        engine: generates the replies, of at most `config.max_new_tokens` tokens.
        prompts: of a suite.
        config: reply length.
        path: file of the replies, one line each; continued where it exists.
        batch_size: of the engine; a partial batch is asked again, so that every batch holds the same prompts as in an
            uninterrupted evaluation. 1 where batches have no fixed size.

    Raises:
        SeawallError: an endpoint does not answer; the replies so far are kept.
        ArtifactError: the file is damaged.
    """
    by_id, problems = {prompt.id: prompt for prompt in prompts}, dict[str, str]()
    for turn in range(max((len(prompt.turns) for prompt in prompts), default=0)):
        open_prompts = [prompt for prompt in by_id.values() if prompt.turns and prompt.id not in problems]
        log = _TurnLog(path, turn, [prompt.id for prompt in open_prompts], batch_size)
        _ask(engine, open_prompts, config, log)
        for prompt in open_prompts:
            row = log.replies[prompt.id]
            if row.problem is not None:
                problems[prompt.id] = f"turn {turn + 1}: {row.problem}"
            else:
                answer, following = Message("assistant", row.reply), Message("user", prompt.turns[0])
                by_id[prompt.id] = replace(prompt, prompt=(*prompt.prompt, answer, following), turns=prompt.turns[1:])
    return Conversations(tuple(by_id.values()), problems)


def _ask(engine: Engine, prompts: Sequence[EvalPrompt], config: EvalConfig, log: _TurnLog) -> None:
    """Adds a reply to every prompt that lacks one; prompts without a reply are tried twice."""
    for last_pass in (False, True):
        waiting = [prompt for prompt in prompts if prompt.id not in log.replies]
        if not waiting:
            return
        failed: list[str] = []

        def save(
            positions: Sequence[int],
            replies: Sequence[Reply],
            *,
            waiting: Sequence[EvalPrompt] = waiting,
            failed: list[str] = failed,
            last_pass: bool = last_pass,
        ) -> None:
            pairs = [(waiting[position].id, reply) for position, reply in zip(positions, replies, strict=True)]
            failed += [str(reply.problem) for _, reply in pairs if not reply.final]
            require_replies(failed, len(prompts))
            log.append([(name, reply) for name, reply in pairs if reply.final or last_pass])

        engine(
            [prompt.prompt for prompt in waiting],
            max_new_tokens=config.max_new_tokens,
            lengths=[config.max_new_tokens],
            on_replies=save,
        )


@dataclass(frozen=True, slots=True)
class _TurnReply:
    """A line of the file: the reply to the turn `turn` (from 0) of the prompt `id`, or why there is none."""

    turn: int
    id: str
    reply: str
    problem: str | None


class _TurnLog:
    """The replies to one turn, by the prompt's id; a batch is written at once."""

    def __init__(self, path: Path, turn: int, ids: Sequence[str], batch_size: int) -> None:
        self._path, self._turn = path, turn
        rows = _read(path) if path.exists() else []
        earlier = [row for row in rows if row.turn < turn]
        own = [row for row in rows if row.turn == turn and row.id in set(ids)]
        later = [row for row in rows if row.turn > turn]
        if len(own) < len(ids):
            own, later = own[: len(own) // batch_size * batch_size], []
        remaining = (*earlier, *own, *later)
        if len(remaining) < len(rows):
            write_text(path, "".join(map(_line, remaining)))
        self.replies = {row.id: row for row in own}

    def append(self, replies: Sequence[tuple[str, Reply]]) -> None:
        """Adds a batch; it is on disk on return."""
        rows = [self._row(name, reply) for name, reply in replies]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))
            file.flush()
            os.fsync(file.fileno())
        self.replies.update({row.id: row for row in rows})

    def _row(self, name: str, reply: Reply) -> _TurnReply:
        text = reply.text.strip()
        problem = reply.problem or reply.unscored or (None if text else "the model gave no answer")
        return _TurnReply(self._turn, name, text, problem)


def _line(row: _TurnReply) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def _read(path: Path) -> list[_TurnReply]:
    """The lines of the file; an incomplete last one is ignored, and cut off."""
    rows, content = [], path.read_bytes()
    complete = content.rpartition(b"\n")[0]
    for number, raw in enumerate(complete.split(b"\n") if complete else (), start=1):
        try:
            fields = json.loads(raw.decode("utf-8"))
            rows.append(_TurnReply(int(fields["turn"]), str(fields["id"]), str(fields["reply"]), fields["problem"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}:{number}: the reply of a live attack is damaged",
                got=f"{type(error).__name__}: {error}",
                remedy="run the evaluation again",
            ) from None
    os.truncate(path, len(complete) + 1 if complete else 0)
    return rows
