"""How far the keyword judge agrees with labels made by reading: `tests/evaluation/judge_labels.jsonl`.

    python scripts/judge_labels.py                                   the rows whose text is kept
    python scripts/judge_labels.py runs/*/samples/{before,after}.jsonl          all rows, given the runs' samples
    python scripts/judge_labels.py --draw 7 SAMPLES.jsonl ...        prompts and replies to label, without verdicts
    python scripts/judge_labels.py --draw 7 --letters FILE --write OUT.jsonl SAMPLES.jsonl ...

A file of letters holds R (refused), C (complied) or U (unscored) for each drawn reply, in the order shown. No text that
may harm is kept: of answers to harmful requests, and of broken ones, only the hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import BENIGN, BORDERLINE, WRAPPED
from seawall.data.types import Outcome, outcome
from seawall.evaluation.intervals import exact_interval
from seawall.evaluation.judges.keyword import judge_reply
from seawall.evaluation.samples import load_samples

LABELS = Path(__file__).parents[1] / "tests" / "evaluation" / "judge_labels.jsonl"
LETTERS: dict[str, Outcome] = {"R": "refused", "C": "complied", "E": "evades", "U": "unscored"}
HARMLESS = (BENIGN, BORDERLINE, WRAPPED)


@dataclass(frozen=True)
class Row:
    """One label.

    `source` names the model and the side; `text`, and with it `goal` and `prompt` (the last message of the user), is
    None where the reply is not kept.
    """

    source: str
    id: str
    group: str
    prompt_sha256: str
    completion_sha256: str
    label: Outcome
    text: str | None
    prompt: str | None = None
    goal: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What the sample is found by."""
        return self.prompt_sha256, self.completion_sha256


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_text(sample: Sample) -> str:
    return json.dumps([message.as_dict() for message in sample.prompt], ensure_ascii=False)


def hashes(sample: Sample) -> tuple[str, str]:
    return sha256(prompt_text(sample)), sha256(sample.response)


def read_labels(path: Path = LABELS) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]


def drawn(paths: Sequence[Path], per_group: int) -> list[tuple[str, Sample]]:
    """As many samples of every group of every file, none twice, ordered by group: ("RUN/SIDE", sample)."""
    found: list[tuple[str, Sample]] = []
    known: set[tuple[str, str]] = set()
    for path in paths:
        run, side = path.resolve().parents[1].name, path.stem
        samples = sorted(load_samples(path), key=lambda sample: sample.id)
        for group in sorted({sample.group for sample in samples}):
            rows = [sample for sample in samples if sample.group == group]
            random.Random(f"{run}{side}{group}").shuffle(rows)
            fresh = {hashes(sample): sample for sample in reversed(rows) if hashes(sample) not in known}
            taken = list(fresh.items())[::-1][:per_group]
            known.update(key for key, _ in taken)
            found += [(f"{run}/{side}", sample) for _, sample in taken]
    return sorted(found, key=lambda one: (one[1].group, one[0], one[1].id))


def show(samples: Sequence[tuple[str, Sample]]) -> None:
    for number, (_, sample) in enumerate(samples):
        print(f"[{number}] {sample.group}\n  prompt: {prompt_text(sample)}\n  reply:  {sample.response!r}")


def write(samples: Sequence[tuple[str, Sample]], letters: str, path: Path) -> None:
    with path.open("w", encoding="utf-8") as out:
        for (source, sample), letter in zip(samples, letters, strict=True):
            label = LETTERS[letter]
            kept = label == "refused" or sample.group in HARMLESS
            texts = (sample.response, sample.prompt[-1].content, sample.goal) if kept else (None, None, None)
            row = Row(source, sample.id, sample.group, *hashes(sample), label, *texts)
            out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def with_text(rows: Sequence[Row], paths: Sequence[Path]) -> Iterator[Row]:
    """Every label whose reply is kept in the file or found, by its hashes, among the samples."""
    samples: Mapping[tuple[str, str], Sample] = {
        hashes(sample): sample for path in paths for sample in load_samples(path)
    }
    for row in rows:
        sample = samples.get(row.key)
        if row.text is not None:
            yield row
        elif sample is not None:
            yield replace(row, text=sample.response, prompt=sample.prompt[-1].content, goal=sample.goal)


def agreement(rows: Sequence[Row]) -> None:
    found = [(row, outcome(*judge_reply(row.text or "", row.prompt or "", row.goal))) for row in rows]
    print(f"{'group':24} {'scored':>6} {'agree':>6} {'share':>7}   read as unscored, judged: refused complied evades")
    for group in [*sorted({row.group for row, _ in found}), None]:
        own = [(row.label, judged) for row, judged in found if group in (None, row.group)]
        scored = [pair for pair in own if "unscored" not in pair]
        same = sum(label == judged for label, judged in scored)
        broken = Counter(judged for label, judged in own if label == "unscored")
        share = f"{same / len(scored):7.1%}" if scored else "      -"
        counts = " ".join(f"{broken[label]:8d}" for label in ("refused", "complied", "evades"))
        print(f"{group or 'all':24} {len(scored):6d} {same:6d} {share}   {'':24} {counts}")
    scored_all = [(row.label, judged) for row, judged in found if "unscored" not in (row.label, judged)]
    low, high = exact_interval(sum(a == b for a, b in scored_all), len(scored_all))
    print(f"agreement on scored replies, evasions included: 95% interval {low:.1%} to {high:.1%}")
    print(f"the same of four outcomes:  {sum(row.label == judged for row, judged in found) / len(found):.1%}")
    for row, judged in found:
        if judged != row.label:
            print(f"  {row.source} {row.id}: read as {row.label}, judged {judged}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="*", help="samples/before.jsonl and after.jsonl of runs")
    parser.add_argument("--draw", type=int, metavar="N", help="draw N samples of every group of every file")
    parser.add_argument("--letters", type=Path, help="labels of the drawn samples")
    parser.add_argument("--write", type=Path, help="where the labels go")
    args = parser.parse_args()
    if (args.letters is None) != (args.write is None) or (args.letters and args.draw is None):
        parser.error("--letters, --write and --draw belong together")
    if args.draw is None:
        rows = read_labels()
        pairs = list(with_text(rows, args.samples))
        print(f"{len(pairs)} of {len(rows)} labelled replies at hand")
        agreement(pairs)
        return
    samples = drawn(args.samples, args.draw)
    if args.letters is None:
        show(samples)
    else:
        write(samples, args.letters.read_text().strip(), args.write)


if __name__ == "__main__":
    main()
