"""1,000 mutated recipes, prompts, artifacts, models, templates, adapters and bodies, with known outcomes.

`PYTHONPATH=$PWD/src:$PWD/tests python benchmarks/hostile.py` prints a table, and every failure in full. Failures are
tracebacks (exit codes other than 0 and 2, or more than one line), hangs over 60 s, and numbers that changed without a
word.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from hostility import FAILURES, Ground, Outcome, cases

SHARES = {"recipe": 250, "prompts": 100, "artifact": 250, "model": 120, "template": 100, "adapter": 60, "body": 120}
COLUMNS = ("refused", "same", "anew", "accepted", *FAILURES)


def outcome(folder: Path, kind: str, seed: int) -> Outcome:
    """One case in a folder of its own, which is removed."""
    place = folder / f"{kind}-{seed}"
    place.mkdir()
    result = cases(Ground(folder / "ground"))[kind](place, random.Random(f"{kind}/{seed}"))
    shutil.rmtree(place)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHARES, help="one kind of input")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 1,000 cases")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    with TemporaryDirectory() as name:
        folder = Path(name)
        Ground(folder / "ground").build()
        wanted = [
            (folder, kind, options.first + number)
            for kind, count in SHARES.items()
            if options.only in (None, kind)
            for number in range(round(count * options.scale))
        ]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(outcome, *zip(*wanted, strict=True), chunksize=4))
    for (_, kind, seed), result in zip(wanted, results, strict=True):
        if result.result in FAILURES:
            print(json.dumps({"kind": kind, "seed": seed, "name": result.name, result.result: result.detail}))
    counts = Counter((result.kind, result.result) for result in results)
    print(f"{'input':10}" + "".join(f"{column:>10}" for column in ("cases", *COLUMNS)))
    for kind in dict.fromkeys(result.kind for result in results):
        row = [counts[kind, column] for column in COLUMNS]
        print(f"{kind:10}" + "".join(f"{count:>10}" for count in (sum(row), *row)))
    total = [sum(counts[kind, column] for kind in SHARES) for column in COLUMNS]
    print(f"{'all':10}" + "".join(f"{count:>10}" for count in (sum(total), *total)))
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
