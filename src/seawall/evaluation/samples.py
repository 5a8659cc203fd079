"""samples.jsonl: every prompt, reply and verdict, written batch by batch, so that an evaluation can resume."""

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
from seawall.evaluation.suite import EvalPrompt, asked
from seawall.runs.files import write_text


@dataclass(frozen=True, slots=True)
class _Line:
    """A sample, and the offset in the file at which its line ends."""

    sample: Sample
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A judged text: a sample's reply, or the reply cut at `length` tokens."""

    sample: Sample
    length: int | None
    response: str
    reason: str


def readings(sample: Sample) -> list[Reading]:
    """All judged texts of a sample, the reply first."""
    cuts = [Reading(sample, cut.length, cut.response, cut.reason) for cut in sample.cuts]
    return [Reading(sample, None, sample.response, sample.reason), *cuts]


def _judged(sample: Sample, length: int | None, verdict: Verdict) -> Sample:
    """The sample with a new verdict on its reply, or on the reply cut at a length."""
    if length is None:
        return replace(sample, label=verdict.label, reason=verdict.reason, harm=verdict.harm, disputed=verdict.disputed)
    cuts = tuple(
        replace(cut, label=verdict.label, reason=verdict.reason) if cut.length == length else cut for cut in sample.cuts
    )
    return replace(sample, cuts=cuts)


def load_samples(path: Path) -> list[Sample]:
    """The samples of a file, in the order of writing. An incomplete last line is ignored.

    Raises:
        ArtifactError: the file is missing, or a line other than the last is damaged.
    """
    return [line.sample for line in _lines(path)]


class SampleLog:
    """The samples of one evaluation, on disk (one line each) and in memory; a batch is written at once."""

    def __init__(self, path: Path, prompts: Sequence[EvalPrompt], *, batch_size: int = 1) -> None:
        """Opens the file at `path`, which the first batch creates.

        A partial batch is removed and generated again, so that all later batches hold the same prompts as in an
        uninterrupted evaluation and their replies are bit-identical. Where batches have no fixed size, `batch_size` is
        1: only an incomplete sample is removed.

        Raises:
            ArtifactError: the file is damaged, or holds samples of another evaluation.
        """
        self.prompts = tuple(prompts)
        self._path = path
        lines = _lines(path) if path.exists() else []
        if len(lines) < len(self.prompts):
            lines = lines[: len(lines) // batch_size * batch_size]
        self._samples = {line.sample.id: line.sample for line in lines}
        self._check()
        if path.exists():
            os.truncate(path, lines[-1].end if lines else 0)

    @property
    def missing(self) -> list[EvalPrompt]:
        """The prompts without a sample, in the order of the suite."""
        return [prompt for prompt in self.prompts if prompt.id not in self._samples]

    @property
    def samples(self) -> list[Sample]:
        """The samples in the order of the suite; none may be missing."""
        return [self._samples[prompt.id] for prompt in self.prompts]

    def append(self, batch: Sequence[Sample]) -> None:
        """Adds a batch; it is on disk on return."""
        with self._path.open("ab") as handle:
            handle.write("".join(map(_to_line, batch)).encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        self._samples.update({sample.id: sample for sample in batch})

    def unanswered(self) -> list[Reading]:
        """The texts that the judge could not be reached for: replies, and replies cut at further lengths."""
        return [
            reading
            for sample in self._samples.values()
            for reading in readings(sample)
            if reading.reason.startswith(NO_ANSWER)
        ]

    def judge_again(self, readings: Sequence[Reading], verdicts: Sequence[Verdict]) -> None:
        """Replaces the verdicts on some texts, and the file atomically."""
        for reading, verdict in zip(readings, verdicts, strict=True):
            self._samples[reading.sample.id] = _judged(self._samples[reading.sample.id], reading.length, verdict)
        write_text(self._path, "".join(map(_to_line, self._samples.values())))

    def _check(self) -> None:
        # Of a live conversation the first turn: its file of turns holds the replies in between.
        prompts = {prompt.id: asked(prompt) for prompt in self.prompts}
        for sample in self._samples.values():
            if prompts.get(sample.id) != asked(sample):
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
    if sample.thought:
        fields["thought"] = sample.thought
    if sample.live:
        fields["live"] = True
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
    lines, end = [], 0
    # After the last line feed comes nothing, or an incomplete line.
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        end += len(raw) + 1
        lines.append(_Line(_from_line(raw, f"{path}:{number}"), end))
    return lines


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
            thought=fields.get("thought", ""),
            live=fields.get("live", False),
            cuts=tuple(
                Cut(row["length"], row["response"], row["label"], row["reason"]) for row in fields.get("lengths", ())
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{where}: the sample is damaged",
            got=f"{type(error).__name__}: {error}",
            remedy="run the evaluation again",
        ) from None
    for label in (sample.label, *(cut.label for cut in sample.cuts)):
        if label not in get_args(VerdictLabel):
            labels = ", ".join(get_args(VerdictLabel))
            raise ArtifactError(f"{where}: unknown verdict", got=repr(label), expected=labels)
    return sample
