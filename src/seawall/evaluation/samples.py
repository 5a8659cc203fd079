"""samples.jsonl: every prompt, reply and verdict, written batch by batch so that an evaluation can go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from seawall.artifacts.evaluation import Cut, Sample
from seawall.data.types import NO_ANSWER, Message, Verdict, VerdictLabel
from seawall.errors import ArtifactError
from seawall.evaluation.suite import EvalPrompt
from seawall.runs.files import write_text


@dataclass(frozen=True, slots=True)
class _Line:
    """A sample and the byte of the file that it ends before."""

    sample: Sample
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a verdict stands on: a sample's reply, or the reply after its first `length` tokens."""

    sample: Sample
    length: int | None
    response: str
    reason: str


def readings(sample: Sample) -> list[Reading]:
    """Everything of a sample that has a verdict, the reply first."""
    cuts = [Reading(sample, cut.length, cut.response, cut.reason) for cut in sample.cuts]
    return [Reading(sample, None, sample.response, sample.reason), *cuts]


def _judged(sample: Sample, length: int | None, verdict: Verdict) -> Sample:
    """The sample with another verdict on its reply, or on the reply at a length."""
    if length is None:
        return replace(sample, label=verdict.label, reason=verdict.reason, harm=verdict.harm, disputed=verdict.disputed)
    cuts = tuple(
        replace(cut, label=verdict.label, reason=verdict.reason) if cut.length == length else cut for cut in sample.cuts
    )
    return replace(sample, cuts=cuts)


def load_samples(path: Path) -> list[Sample]:
    """The samples of a file, in the order they were written. A last line that was cut off is passed over.

    Raises:
        ArtifactError: the file is missing, or another line than the last is damaged.
    """
    return [line.sample for line in _lines(path)]


class SampleLog:
    """The samples of one evaluation, on disk and in memory. One line a sample; a batch is written at once."""

    def __init__(self, path: Path, asked: Sequence[EvalPrompt], *, batch_size: int = 1) -> None:
        """Continue the file at `path`, or begin it.

        A batch that was written in part is dropped and done again, so that the later batches hold the prompts that
        they hold in an evaluation that is never interrupted; their replies are then the same to the last bit. Where
        batches have no fixed size, `batch_size` is 1: only a sample that was written in part is dropped.

        Raises:
            ArtifactError: the file is damaged, or holds samples of another evaluation.
        """
        self.asked = tuple(asked)
        self._path = path
        lines = _lines(path) if path.exists() else []
        if len(lines) < len(self.asked):
            lines = lines[: len(lines) // batch_size * batch_size]
        self._samples = {line.sample.id: line.sample for line in lines}
        self._check()
        if path.exists():
            os.truncate(path, lines[-1].end if lines else 0)

    @property
    def missing(self) -> list[EvalPrompt]:
        """The prompts without a sample, in the order of the suite."""
        return [asked for asked in self.asked if asked.id not in self._samples]

    @property
    def samples(self) -> list[Sample]:
        """The samples in the order of the suite; all must be there."""
        return [self._samples[asked.id] for asked in self.asked]

    def append(self, batch: Sequence[Sample]) -> None:
        """Add a batch; it is on disk when this returns."""
        with self._path.open("ab") as handle:
            handle.write("".join(map(_to_line, batch)).encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        self._samples.update({sample.id: sample for sample in batch})

    def unanswered(self) -> list[Reading]:
        """What the judge could not be asked about: replies, and replies as they are at other lengths."""
        return [
            reading
            for sample in self._samples.values()
            for reading in readings(sample)
            if reading.reason.startswith(NO_ANSWER)
        ]

    def judge_again(self, readings: Sequence[Reading], verdicts: Sequence[Verdict]) -> None:
        """Put other verdicts on what was judged; the file is replaced whole."""
        for reading, verdict in zip(readings, verdicts, strict=True):
            self._samples[reading.sample.id] = _judged(self._samples[reading.sample.id], reading.length, verdict)
        write_text(self._path, "".join(map(_to_line, self._samples.values())))

    def _check(self) -> None:
        prompts = {asked.id: asked.prompt for asked in self.asked}
        for sample in self._samples.values():
            if prompts.get(sample.id) != sample.prompt:
                raise ArtifactError(
                    f"{self._path} holds samples of another evaluation",
                    got=f"the sample {sample.id}",
                    expected="the prompts of this recipe",
                    remedy="use another run folder",
                )


def _to_line(sample: Sample) -> str:
    fields: dict[str, Any] = {
        "id": sample.id,
        "group": sample.group,
        "goal": sample.goal,
        "prompt": [message.as_dict() for message in sample.prompt],
        "response": sample.response,
        "label": sample.label,
        "reason": sample.reason,
    }
    fields |= {name: value for name in ("harm", "disputed") if (value := getattr(sample, name)) is not None}
    if sample.cuts:
        fields["lengths"] = [
            {"length": cut.length, "response": cut.response, "label": cut.label, "reason": cut.reason}
            for cut in sample.cuts
        ]
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
        sample = Sample(
            id=fields["id"],
            goal=fields["goal"],
            group=fields["group"],
            prompt=tuple(Message(message["role"], message["content"]) for message in fields["prompt"]),
            response=fields["response"],
            label=fields["label"],
            reason=fields["reason"],
            harm=fields.get("harm"),
            disputed=fields.get("disputed"),
            cuts=tuple(
                Cut(row["length"], row["response"], row["label"], row["reason"]) for row in fields.get("lengths", ())
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{where}: a damaged sample", got=f"{type(error).__name__}: {error}", remedy="run the evaluation again"
        ) from None
    for label in (sample.label, *(cut.label for cut in sample.cuts)):
        if label not in get_args(VerdictLabel):
            known = ", ".join(get_args(VerdictLabel))
            raise ArtifactError(f"{where}: an unknown verdict", got=repr(label), expected=known)
    return sample
