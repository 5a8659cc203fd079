"""Ends commands at random moments by SIGKILL, SIGTERM and SIGINT; the same command then ends at the same bytes.

`PYTHONPATH=$PWD/src:$PWD/tests python benchmarks/kills.py` prints a table: for each verb the number of kills, how many
met the command at work, and how many folders ended otherwise than without a kill. Relative paths in PYTHONPATH would
mean the installed package. The comparison leaves out moments in time, durations, the peak of memory, and what is
computed from them (hashes of files that hold them).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from commands import start
from hostility import inside, succeed
from planted import write_planted
from siblings import write_shots, write_siblings
from tuning_recipe import write_tuning

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
VOLATILE = frozenset(("seconds", "started", "ended", "peak_memory_bytes", "created", "hashes", "seal", "fingerprint"))
STEER = {"positions": [-1], "train_prompts": 8, "validation_prompts": 4, "test_prompts": 4, "experts": False}
EXTRACT = {"epochs": 1, "max_new_tokens": 3, "judged": 0, "harmful": 6, "benign": 6, "held_out": 2}
GRAFT = ("gene", "graft", "degraded", "-g", "genes/gene", "--shots", "2", "--task", "task.jsonl", "-o", "out")
_SHA, _NUMBER = re.compile(r"sha256:[0-9a-f]{6,64}"), re.compile(r"\d+(\.\d+)?")
_SPAN = re.compile(r"(0 h )?(0 min ?)?(0 s)?|0 [kMGT]?i?B")
"""Durations and sizes of memory, after numbers became 0: `8 min 12 s` and `47 s` differ in their words too."""


@dataclass(frozen=True)
class Verb:
    """A command in a copy of a folder, with relative paths."""

    base: str
    words: tuple[str, ...]


VERBS = {
    "run": Verb("planted", ("run", "recipe.yaml", "-o", "out")),
    "eval": Verb("planted", ("eval", "recipe.yaml", "--delta", "run/delta", "-o", "out")),
    "audit": Verb("planted", ("audit", "run", "--only", "silencing", "--set", "audit.silencing.goals=3")),
    "report": Verb("planted", ("report", "run")),
    "apply": Verb("planted", ("apply", "run/delta", "--model", "model", "-o", "out")),
    "tune": Verb("tuning", ("tune", "recipe.yaml", "-o", "out")),
    "steer": Verb("tuning", ("steer", "recipe.yaml", "-o", "out")),
    "landscape": Verb("tuning", ("landscape", "recipe.yaml", "-o", "out")),
    "extract": Verb("family", ("gene", "extract", "recipe.yaml", "-o", "out")),
    "select": Verb("family", ("gene", "select", "genes", "-o", "out")),
    "graft": Verb("family", (*GRAFT, "--merge")),
    "graft adapter": Verb("family", GRAFT),
    "revert": Verb("family", ("gene", "revert", "merged", "-o", "out")),
    "compose": Verb("family", ("gene", "compose", "genes", "third", "-o", "out")),
}


def write_bases(folder: Path) -> None:
    """The folders that commands work in."""
    planted, tuning, family = (folder / name for name in ("planted", "tuning", "family"))
    _relative(write_planted(planted))
    with inside(planted):
        succeed("run", "recipe.yaml", "-o", "run")
    tuning.mkdir()
    landscape = {"base": {"id": "base"}, "random_directions": 1, "amounts": [-1.0, 0.0, 1.0], "test_prompts": 4}
    recipe = write_tuning(tuning, epochs=2.0, methods=["sft", "asft"], test_prompts=4)
    _relative(recipe, steer=STEER, landscape=landscape)
    family.mkdir()
    _relative(write_siblings(family, extract=EXTRACT))
    write_shots(family)
    with inside(family):
        succeed("gene", "extract", "recipe.yaml", "-o", "genes")
        succeed("gene", "select", "genes", "-o", "third")
        succeed(*GRAFT[:-1], "merged", "--merge")


def _relative(recipe: Path, **sections: Any) -> None:
    document = yaml.safe_load(recipe.read_text().replace(f"{recipe.parent}/", ""))
    recipe.write_text(yaml.safe_dump({**document, **sections}))


def killed(base: Path, place: Path, verb: Verb, duration: float, generator: random.Random) -> tuple[int, int, str]:
    """Kills a command one to three times, and runs it to its end: (kills, kills of a command at work, last line)."""
    shutil.copytree(base, place)
    met, kills = 0, generator.choice((1, 1, 2, 3))
    for _ in range(kills):
        with inside(place):
            started = start(*verb.words)
        time.sleep(generator.uniform(0, duration))
        number = generator.choice(SIGNALS)
        if not started.is_over():
            os.kill(started.process, number)
        done = started.wait()
        if done.returncode == 0:
            _reset(base, place, verb)
        elif _has_output(done):
            break
        else:
            met += 1
            if done.returncode not in (3, -signal.SIGKILL):
                return kills, met, f"exit code {done.returncode} after {number.name}: {done.stderr[-300:]}"
    with inside(place):
        done = start(*verb.words).wait()
    # A command that was killed after its last step has left its output, which most verbs refuse to write again.
    is_over = done.returncode == 0 or _has_output(done)
    return kills, met, "" if is_over else f"exit code {done.returncode} at the end: {done.stderr[-300:]}"


def _has_output(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether the command was killed before this run after its output was whole, and refuses to write it again."""
    return done.returncode == 2 and "out already exists" in done.stderr


def _reset(base: Path, place: Path, verb: Verb) -> None:
    """After a command that ended before its kill: the folder as it was, since most verbs refuse a finished output."""
    shutil.rmtree(place)
    shutil.copytree(base, place)


def contents(folder: Path) -> dict[str, Any]:
    """Path -> content of every file, without what differs between two runs; folders too."""
    return {
        path.relative_to(folder).as_posix(): _content(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def _content(path: Path) -> Any:
    if path.suffix == ".html":
        return _SPAN.sub("", _NUMBER.sub("0", _SHA.sub("", path.read_text("utf-8"))))
    if path.suffix in (".json", ".jsonl") or path.name == "DONE":
        texts = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        return [_stable(json.loads(text)) for text in texts]
    return path.read_bytes()


def _stable(value: Any, key: str = "") -> Any:
    """JSON without moments and durations, and without hashes of what holds them; those of tensors and lines stay."""
    if isinstance(value, dict):
        return {name: _stable(inner, name) for name, inner in value.items() if name not in VOLATILE}
    if isinstance(value, str) and value.startswith("sha256:") and not key.endswith((".safetensors", ".jsonl")):
        return None
    return [_stable(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", choices=VERBS)
    parser.add_argument("--minutes", type=float, default=120.0, help="no kill begins after these minutes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    verbs = {name: verb for name, verb in VERBS.items() if options.only in (None, name)}
    counts: Counter[tuple[str, str]] = Counter()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_bases(folder)
        references = {name: _reference(folder, verb) for name, verb in verbs.items()}
        number = 0
        end = time.monotonic() + 60 * options.minutes
        while sum(counts[verb, "met"] for verb in verbs) < options.kills and time.monotonic() < end:
            verb = list(verbs)[number % len(verbs)]
            expected, duration = references[verb]
            generator = random.Random(f"{options.seed}/{number}")
            kills, met, problem = killed(folder / verbs[verb].base, folder / "place", verbs[verb], duration, generator)
            found = contents(folder / "place")
            if not problem and found != expected:
                paths = sorted(path for path in {*found, *expected} if found.get(path, 0) != expected.get(path, 0))
                problem = f"differs: {paths[:5]}"
            if problem:
                print(json.dumps({"verb": verb, "number": number, "problem": problem}), flush=True)
            row = {"folders": 1, "kills": kills, "met": met, "other": int(bool(problem))}
            counts.update({(verb, column): count for column, count in row.items()})
            shutil.rmtree(folder / "place")
            number += 1
    columns = ("folders", "kills", "met", "other")
    print(f"{'verb':14}" + "".join(f"{column:>9}" for column in columns))
    for verb in verbs:
        print(f"{verb:14}" + "".join(f"{counts[verb, column]:>9}" for column in columns))
    print(f"{'all':14}" + "".join(f"{sum(counts[verb, column] for verb in verbs):>9}" for column in columns))


def _reference(folder: Path, verb: Verb) -> tuple[dict[str, Any], float]:
    """The folder that the command leaves without a kill, and its seconds."""
    place = folder / "place"
    shutil.copytree(folder / verb.base, place)
    begun = time.monotonic()
    with inside(place):
        succeed(*verb.words)
    duration = time.monotonic() - begun
    reference = contents(place)
    shutil.rmtree(place)
    return reference, duration


if __name__ == "__main__":
    main()
