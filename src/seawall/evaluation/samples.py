"""samples.jsonl: every prompt, reply and verdict, written batch by batch so that an evaluation can go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from seawall.artifacts.evaluation import Sample
from seawall.data.types import NO_ANSWER, Message, Verdict, VerdictLabel
from seawall.errors import ArtifactError
from seawall.evaluation.suite import Asked
from seawall.runs.files import write_text


@dataclass(frozen=True, slots=True)
class _Line:
    """A sample and the byte of the file that it ends before."""

    sample: Sample
    end: int


def load_samples(path: Path) -> list[Sample]:
    """The samples of a file, in the order they were written. A last line that was cut off is passed over.

    Raises:
        ArtifactError: the file is missing, or another line than the last is damaged.
    """
    return [line.sample for line in _lines(path)]


class SampleLog:
    """The samples of one evaluation, on disk and in memory. One line a sample; a batch is written at once."""

    def __init__(self, path: Path, asked: Sequence[Asked], *, batch_size: int) -> None:
        """Continue the file at `path`, or begin it.

        A batch that was written in part is dropped and done again, so that the later batches hold the prompts that
        they hold in an evaluation that is never interrupted; their replies are then the same to the last bit.

        Raises:
            ArtifactError: the file is damaged, or holds samples of another evaluation.
        """
        self._path = path
        self._asked = list(asked)
        lines = _lines(path) if path.exists() else []
        if len(lines) < len(self._asked):
            lines = lines[: len(lines) // batch_size * batch_size]
        self._samples = {line.sample.id: line.sample for line in lines}
        self._check()
        if path.exists():
            os.truncate(path, lines[-1].end if lines else 0)

    @property
    def missing(self) -> list[Asked]:
        """The prompts without a sample, in the order of the suite."""
        return [asked for asked in self._asked if asked.id not in self._samples]

    @property
    def samples(self) -> list[Sample]:
        """The samples in the order of the suite; all must be there."""
        return [self._samples[asked.id] for asked in self._asked]

    def append(self, asked: Sequence[Asked], responses: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Add a batch; it is on disk when this returns."""
        batch = [
            Sample(
                id=one.id,
                goal=one.goal,
                group=one.group,
                prompt=one.prompt,
                response=response,
                label=verdict.label,
                reason=verdict.reason,
            )
            for one, response, verdict in zip(asked, responses, verdicts, strict=True)
        ]
        with self._path.open("ab") as handle:
            handle.write("".join(map(_to_line, batch)).encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        self._samples.update({sample.id: sample for sample in batch})

    def unanswered(self) -> list[Sample]:
        """The samples that the judge could not be asked about."""
        return [sample for sample in self._samples.values() if sample.reason.startswith(NO_ANSWER)]

    def judge_again(self, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        """Put other verdicts on samples; the file is replaced whole."""
        self._samples.update(
            (sample.id, replace(sample, label=verdict.label, reason=verdict.reason))
            for sample, verdict in zip(samples, verdicts, strict=True)
        )
        write_text(self._path, "".join(map(_to_line, self._samples.values())))

    def _check(self) -> None:
        prompts = {asked.id: asked.prompt for asked in self._asked}
        for sample in self._samples.values():
            if prompts.get(sample.id) != sample.prompt:
                raise ArtifactError(
                    f"{self._path} holds samples of another evaluation",
                    got=f"the sample {sample.id}",
                    expected="the prompts of this recipe",
                    remedy="use another run folder",
                )


def _to_line(sample: Sample) -> str:
    fields = {
        "id": sample.id,
        "group": sample.group,
        "goal": sample.goal,
        "prompt": [message.as_dict() for message in sample.prompt],
        "response": sample.response,
        "label": sample.label,
        "reason": sample.reason,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[_Line]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror, remedy="run the evaluation again") from None
    found, end = [], 0
    # What follows the last line feed is empty, or a line that was cut off.
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        end += len(raw) + 1
        found.append(_Line(_from_line(raw, f"{path}:{number}"), end))
    return found


def _from_line(raw: bytes, where: str) -> Sample:
    try:
        fields = json.loads(raw.decode("utf-8"))
        label: VerdictLabel = fields["label"]
        known = label in get_args(VerdictLabel)
        sample = Sample(
            id=fields["id"],
            goal=fields["goal"],
            group=fields["group"],
            prompt=tuple(Message(message["role"], message["content"]) for message in fields["prompt"]),
            response=fields["response"],
            label=label,
            reason=fields["reason"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{where}: a damaged sample", got=f"{type(error).__name__}: {error}", remedy="run the evaluation again"
        ) from None
    if not known:
        raise ArtifactError(f"{where}: an unknown verdict", got=repr(label), expected=", ".join(get_args(VerdictLabel)))
    return sample
