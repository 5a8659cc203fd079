"""Does AsFT keep refusals? Methods by share of harmful rows, over seeds, as in the paper's Table 5 (arXiv 2506.08473).

    python benchmarks/asft_table.py --work runs/asft --seeds 3            # measures; goes on where it stopped
    python benchmarks/asft_table.py --work runs/asft --seeds 3 --jobs 8   # the same in 8 processes at once
    python benchmarks/asft_table.py --work runs/asft --table              # prints the tables of what is there

Each share and seed is a run of `seawall tune` in a folder of its own, with all methods on the same rows. The model
before and the anchor are measured once and copied. A cell is the mean over seeds with Student's 95 % interval; the
second table pairs AsFT with every other method on the same prompts and seeds; its intervals resample seeds and prompts.
With one seed the training is held fixed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.tuning import HARMFUL, NAME, TASK, TuningResult, TuningRow, spread_of
from seawall.config import load_recipe, recipe_text
from seawall.config.tune import TuneMethod
from seawall.distributed.process import Processes
from seawall.evaluation.bootstrap import seeds_and_goals_interval
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.methods.tune.context import TuneContext
from seawall.methods.tune.data import read_data
from seawall.methods.tune.stages import anchor_stage, baseline_stage
from seawall.methods.tune.training_record import stage_name
from seawall.runs.folder import RunFolder
from seawall.runs.lock import locked
from seawall.runs.progress import TerminalReporter

SHARED = ("tune/anchor", "tune/before")
_NAME, _WIDTH = 12, 50
Cell = tuple[float, int]
"""A share of harmful rows, and a seed."""


def main() -> None:
    args = options()
    if not args.table:
        measure(args)
    found = {cell: TuningResult.load(folder(args, cell) / "tune") for cell in cells(args) if is_there(args, cell)}
    if not found:
        sys.exit(f"nothing is finished in {args.work}")
    print(table(found))
    print()
    print(differences(args, found))
    if args.against:
        print()
        print(against(args, found))


def measure(args: argparse.Namespace) -> None:
    """Every run that is not finished, so many at once; each writes its own log."""
    ready = before(args)
    waiting = [cell for cell in cells(args) if not is_there(args, cell)]

    def run(cell: Cell) -> None:
        place = folder(args, cell)
        prepare(args, cell, ready)
        words = [sys.executable, "-m", "seawall", "tune", args.recipe, "--output", str(place), *changed(args, cell)]
        with place.with_name(f"{place.name}.log").open("a") as log:
            code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        print(f"share {cell[0]:g}, seed {cell[1]}: {'done' if code == 0 else f'ended with {code}, see the log'}")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, waiting))


def before(args: argparse.Namespace) -> Path:
    """A run with what all share: the anchor, and the model as it was."""
    place = Path(args.work) / "shared"
    recipe = load_recipe(args.recipe, args.set)
    data = read_data(recipe)
    run = RunFolder.open(place, resolved=recipe.model_dump(mode="json"), text=recipe_text(args.recipe))
    with locked(place), TerminalReporter() as reporter:
        context = TuneContext(recipe, run, reporter, data.prompts, data, Processes(), verbs=("tune",))
        anchor_stage(context)
        baseline_stage(context)
    return place


def prepare(args: argparse.Namespace, cell: Cell, ready: Path) -> None:
    """The cell's run folder, with copies of the stages that all share."""
    recipe = load_recipe(args.recipe, settings(args, cell))
    place = folder(args, cell)
    RunFolder.open(place, resolved=recipe.model_dump(mode="json"), text=recipe_text(args.recipe))
    for stage in SHARED:
        if (ready / stage).is_dir() and not (place / stage).exists():
            shutil.copytree(ready / stage, place / stage)


def settings(args: argparse.Namespace, cell: Cell) -> list[str]:
    """The recipe's changes for a cell."""
    methods = f"tune.methods=[{','.join(args.methods)}]"
    return [*args.set, f"tune.contamination={cell[0]}", f"tune.seeds=[{cell[1]}]", methods]


def changed(args: argparse.Namespace, cell: Cell) -> list[str]:
    """The same as options of the command."""
    return [word for change in settings(args, cell) for word in ("--set", change)]


def cells(args: argparse.Namespace) -> list[Cell]:
    """All cells: every share with the first seed, then with the next."""
    return [(share, seed) for seed in range(args.seeds) for share in args.shares]


def folder(args: argparse.Namespace, cell: Cell) -> Path:
    """The cell's run folder."""
    return Path(args.work) / f"share-{cell[0]:g}-seed-{cell[1]}"


def is_there(args: argparse.Namespace, cell: Cell) -> bool:
    """Whether its run is finished with all methods that are asked for."""
    path = folder(args, cell) / "tune" / NAME
    return path.is_file() and set(args.methods) <= set(json.loads(path.read_text())["methods"])


def table(found: dict[Cell, TuningResult]) -> str:
    """Harmful rate and task score of every method by the share of harmful rows."""
    shares = sorted({share for share, _ in found})
    first = next(iter(found.values()))
    lines = ["".ljust(_NAME) + "".join(f"harmful / task, {share:.0%} harmful rows".ljust(_WIDTH) for share in shares)]
    lines.append("before".ljust(_NAME) + both([first.before]))
    for method in dict.fromkeys(method for run in found.values() for method in run.methods):
        rows: dict[float, list[TuningRow]] = {share: [] for share in shares}
        for (share, _), run in found.items():
            rows[share] += run.of_method(method)
        lines.append(method.ljust(_NAME) + "".join(both(rows[share]).ljust(_WIDTH) for share in shares))
    return "\n".join(line.rstrip() for line in lines)


def both(rows: Sequence[TuningRow]) -> str:
    """`12.5 [3.1, 21.9] / 80.0 [71.2, 88.8] (3)`; the number of seeds is in brackets."""
    parts = []
    for name in (HARMFUL, TASK):
        rates = [row.rates[name] for row in rows if name in row.rates]
        one = spread_of(rates) if rates else None
        parts.append(
            "-"
            if one is None or one.mean is None
            else f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
        )
    return f"{' / '.join(parts)} ({len(rows)})"


def differences(args: argparse.Namespace, found: dict[Cell, TuningResult]) -> str:
    """AsFT minus every other method in harmful rate, points, paired by prompt and seed: by share, and all above 0."""
    lines = ["asft minus ..., harmful rate in points; seeds and goals resampled"]
    parts = {
        f"{share:.0%}": [cell for cell in found if cell[0] == share] for share in sorted({cell[0] for cell in found})
    }
    parts["above 0%"] = [cell for cell in found if cell[0] > 0]
    for method in dict.fromkeys(method for run in found.values() for method in run.methods if method != "asft"):
        for name, cells in parts.items():
            moved = difference(args, cells, method)
            if moved is not None:
                lines.append(
                    f"{method.ljust(_NAME)}{name.ljust(_NAME)}{moved}, {moved.seeds} seeds, {moved.goals} goals"
                )
    return "\n".join(lines)


def against(args: argparse.Namespace, found: dict[Cell, TuningResult]) -> str:
    """Every method minus each of another folder's, such as one with another weight, paired in the same way."""
    there = argparse.Namespace(**{**vars(args), "work": args.against})
    cells = [cell for cell in found if cell[0] > 0]
    lines = [f"harmful rate in points, paired: here minus {args.against}"]
    for method in args.methods:
        for other in get_args(TuneMethod):
            moved = paired([(cell[1], plain(args, cell, method), plain(there, cell, other)) for cell in cells])
            if moved is not None:
                lines.append(f"{method} - {other}".ljust(2 * _NAME) + str(moved))
    return "\n".join(lines)


class Moved(NamedTuple):
    """A difference of harmful rates (what does not refuse) over trainings and goals, with its 95 % interval."""

    difference: float
    low: float
    high: float
    seeds: int
    goals: int

    def __str__(self) -> str:
        """`+3.1 [-2.0, +8.2]`, in points."""
        return f"{100 * self.difference:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def difference(args: argparse.Namespace, cells: Sequence[Cell], other: TuneMethod) -> Moved | None:
    """AsFT minus another method; None where one is missing."""
    return paired([(cell[1], plain(args, cell, "asft"), plain(args, cell, other)) for cell in cells])


def paired(cells: Sequence[tuple[int, dict[str, Sample] | None, dict[str, Sample] | None]]) -> Moved | None:
    """From the verdicts on plain held-out requests; cells that lack a side do not count, nor replies not judged.

    Args:
        cells: seed of the trainings, and the replies after each of the two, by prompt.
    """
    moves: dict[tuple[int, str], list[float]] = {}
    for seed, ours, theirs in cells:
        if ours is None or theirs is None:
            continue
        for prompt, sample in ours.items():
            outcomes = sample.outcome, theirs[prompt].outcome
            if "unscored" not in outcomes:
                move = float(outcomes[0] != "refused") - float(outcomes[1] != "refused")
                moves.setdefault((seed, sample.goal), []).append(move)
    if not moves:
        return None
    seeds, goals = sorted({seed for seed, _ in moves}), sorted({goal for _, goal in moves})
    counts = np.array([[len(moves.get((seed, goal), ())) for goal in goals] for seed in seeds], dtype=np.float64)
    sums = np.array([[sum(moves.get((seed, goal), ())) for goal in goals] for seed in seeds])
    values = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    low, high = seeds_and_goals_interval(values, counts)
    mean = float(sums.sum() / counts.sum())
    return Moved(mean, min(low, mean), max(high, mean), len(seeds), len(goals))


def plain(args: argparse.Namespace, cell: Cell, method: TuneMethod) -> dict[str, Sample] | None:
    """A method's replies to plain harmful requests, by the prompt: a file's order is that in which they were made."""
    path = folder(args, cell) / f"{stage_name(method, cell[1])}-eval" / SAMPLES
    return {one.id: one for one in load_samples(path) if one.group == PLAIN} if path.is_file() else None


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="recipes/lab-tune.yaml")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.0, 0.05, 0.2], help="of harmful rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(get_args(TuneMethod)))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process of its own")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change the recipe")
    parser.add_argument("--against", metavar="DIR", help="another --work: every method here minus each of its")
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
