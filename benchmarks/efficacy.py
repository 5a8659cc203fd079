"""Does targeting earn its place? RASA and its ablations at equal steps, as curves, with intervals over goals and seeds.

    python benchmarks/efficacy.py --work runs/efficacy --seeds 3 --pairs        # measures; goes on where it stopped
    python benchmarks/efficacy.py --work runs/efficacy --jobs 8 ...             # the same in 8 processes at once
    python benchmarks/efficacy.py --work runs/efficacy --table                  # prints the tables
    python benchmarks/efficacy.py --work runs/efficacy --plot docs/efficacy.svg # draws the curves (extra `bench`)

All variants share one profile and one model; each repairs the same pairs with the same number of updates, and is
measured on test goals after every round, and once more with the original routers put back (`--shortcut`): safety that
this loses lay in the routing. With fewer pairs, both the selection and the repair see only these. Rows go to
`rows*.jsonl`: one per variant, seed and round, with every verdict.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from seawall.artifacts.evaluation import Difference, Rate, Sample
from seawall.artifacts.groups import CountedVerdict, target
from seawall.artifacts.profile import ExpertProfile
from seawall.config import load_recipe
from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.data.splits import SplitName
from seawall.data.types import EVADES, Messages, label_of
from seawall.evaluation.bootstrap import seeds_and_goals_interval
from seawall.evaluation.gold import gold_answer_loss
from seawall.evaluation.metrics import paired_difference, rate_with_interval
from seawall.evaluation.suite import build_suite
from seawall.evaluation.wrapping import measure_wrapping
from seawall.jobs.run import run_recipe
from seawall.methods.rasa.context import repair_inputs, retained_exchanges
from seawall.methods.rasa.repair import ValidationScores, repair
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.stages import pair_sensitivity
from seawall.models.generate import generate
from seawall.models.moe.routers import router_parameters
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.shell.context import Context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SELECTED = "repair.parameters=selected"
VARIANTS: dict[str, list[str]] = {
    "RASA": [_SELECTED],
    "expert step only": [_SELECTED, "repair.router.enabled=false"],
    "router step only": [_SELECTED, "repair.expert.enabled=false", "repair.router.lr=1e-3"],
    "random experts": [_SELECTED, "select.method=random"],
    "frequency-matched experts": [_SELECTED, "select.method=frequency_matched"],
    "traffic-matched experts": [_SELECTED, "select.method=traffic_matched"],
    "shared experts": ["repair.parameters=shared", "repair.expert.lr=3e-4"],
    "all experts": ["repair.parameters=all_experts"],
    "full parameters": ["repair.parameters=full", "repair.expert.lr=3e-5"],
    "experts by sensitivity": [_SELECTED, "select.method=sensitivity"],
}
"""What each changes in the recipe. What trains other parameters than routed experts has its own learning rate, the best
of a few on validation goals (docs/LOG.md, fourth session). Routed experts take that of the recipe or of `--set`, which
is asked for where the recipe trains others.
"""
Row = dict[str, Any]


def require_rates(args: argparse.Namespace) -> None:
    """Ends where a variant would train other parameters than the recipe does, at the recipe's learning rate."""
    own = load_recipe(args.recipe, args.set).repair.parameters
    for changes in (parse_variant(text)[1] for text in args.variant or VARIANTS):
        trained = load_recipe(args.recipe, [*args.set, *changes]).repair.parameters
        has_rate = any(change.startswith("repair.expert.lr=") for change in (*args.set, *changes))
        if trained != own and not has_rate and "repair.expert.enabled=false" not in changes:
            remedy = "--set repair.expert.lr=... (2.5e-3 for routed experts of the embedded model, 4e-4 of the second)"
            raise SystemExit(f"parameters={trained}: the recipe's learning rate is for {own}; give theirs: {remedy}")


def recipe_for(changes: list[str], args: argparse.Namespace, seed: int) -> Recipe:
    router_alone = "repair.expert.enabled=false" in changes
    fixed = [
        f"seed={seed}",
        f"repair.rounds={args.rounds}",
        f"repair.expert.max_steps={args.steps}",
        f"repair.router.max_steps={args.steps if router_alone else args.router_steps}",
        "repair.early_stop.enabled=false",
        f"data.test_goals={args.goals}",
        f"data.test_benign={args.goals}",
        f"data.test_borderline={args.goals}",
        "data.gold_examples=40",
        f"data.attacks_seen=[{','.join(args.seen)}]",
        f"data.attacks_unseen=[{','.join(args.unseen)}]",
    ]
    return load_recipe(args.recipe, [*fixed, *args.set, *changes])


def measure(context: Context, row: Row, path: Path, split: SplitName) -> ValidationScores:
    """Verdicts on the suite of a split as the model now is, appended to the rows."""
    suite = build_suite(context.prompts, split, gold=True, wrapping=True)
    asked: list[tuple[str, str, Messages]] = [(g, goal, p) for g, items in suite.groups.items() for goal, p in items]
    config = context.recipe.eval
    prompts = [prompt for _, _, prompt in asked]
    model, tokenizer = context.opened.model, context.opened.tokenizer
    replies = generate(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    verdicts = context.judge(prompts, [reply.answer for reply in replies])
    labels: dict[str, list[tuple[str, str]]] = {}
    for (group, goal, _), verdict in zip(asked, verdicts, strict=True):
        labels.setdefault(group, []).append((goal, verdict.outcome))
    loss = gold_answer_loss(model, tokenizer, suite.gold, batch_size=config.forward_rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "labels": labels, "gold_loss": loss.loss}) + "\n")
    share = {g: sum(label == target(g) for _, label in rows) / len(rows) for g, rows in labels.items()}
    seen = [share[f"attack:{name}"] for name in context.prompts.seen_families]
    return ValidationScores(sum(seen) / len(seen), share["plain"], share["borderline"], 1 - share["benign"])


@dataclass(frozen=True)
class Task:
    """One repair: a variant with a seed, on all pairs or the first few."""

    name: str
    changes: list[str]
    seed: int
    pairs: int | None

    def is_done(self, args: argparse.Namespace) -> bool:
        """Its last row is there."""
        last = (self.name, self.seed, self.pairs, args.rounds, args.shortcut)
        return any((r["variant"], r["seed"], r["pairs"], r["round"], is_shortcut(r)) == last for r in read_rows(args))


def is_shortcut(row: Row) -> bool:
    """It was measured with the original routers put back."""
    return bool(row.get("original_routers", False))


def run_task(context: Context, task: Task, rows: Path, args: argparse.Namespace) -> None:
    name, seed, pairs = task.name, task.seed, task.pairs
    recipe = recipe_for(task.changes, args, seed)
    profile = first_pairs(ExpertProfile.load(context.run.stage("profile")), pairs)
    by_gradient = pair_sensitivity(context)[:pairs] if recipe.select.score == "sensitivity" else None
    experts = select(profile, recipe.select, tokens=recipe.profile.tokens, sensitivity_PLE=by_gradient)
    repaired = recipe.repair
    answers = args.work / f"answers-{repaired.objective}-{repaired.retain.twins}-{repaired.seed}-{pairs}"
    answers.mkdir(exist_ok=True)
    shutil.copy(args.work / "retain.jsonl", answers)
    inputs = repair_inputs(context, repaired, answers, count=pairs)
    before = {key: tensor.clone() for key, tensor in context.opened.model.state_dict().items()}
    scratch = rows.with_name(f"scratch-{rows.stem}")
    shutil.rmtree(scratch, ignore_errors=True)
    begun, number = time.monotonic(), iter(range(args.rounds + 1))

    updates: Counter[str] = Counter()

    def row_of(round_: int) -> Row:
        row = {"variant": name, "seed": seed, "pairs": pairs, "round": round_, "experts": experts.count}
        steps = updates["expert"] or updates["router"]
        if steps != round_ * args.steps:
            got = f"{steps} updates in {round_} rounds, not {round_ * args.steps}: an epoch has fewer than --steps"
            raise SystemExit(f"{name}: {got}; lower --steps, or set repair.expert.epochs and repair.router.epochs")
        return row | {"steps": steps, "seconds": time.monotonic() - begun}

    def validate() -> ValidationScores:
        row = row_of(next(number))
        if row["round"] == 0 or (args.last_round and row["round"] < args.rounds):
            return ValidationScores(1.0, 1.0, 0.0, 0.0)
        scores = measure(context, row, rows, args.split)
        print(name, "seed", seed, "pairs", pairs, "steps", row["steps"], scores, flush=True)
        return scores

    repair(
        context.opened.moe,
        context.opened.tokenizer,
        inputs,
        experts,
        recipe.repair,
        validate=validate,
        scratch=scratch,
        report=lambda row: updates.update([str(row["phase"])]),
    )
    state = context.opened.model.state_dict()
    if args.shortcut:
        for key in router_parameters(context.opened.moe):
            state[key].copy_(before[key])
        measure(context, row_of(args.rounds) | {"original_routers": True}, rows, args.split)
    for key, tensor in before.items():
        state[key].copy_(tensor)


def first_pairs(profile: ExpertProfile, count: int | None) -> ExpertProfile:
    """The profile of the first pairs alone."""
    tensors = {field.name: getattr(profile, field.name) for field in fields(profile)}
    kept = {name: value[:count] for name, value in tensors.items() if name.endswith(("_P", "_PLE"))}
    return replace(profile, pairs=profile.pairs[:count], **kept)


def read_rows(args: argparse.Namespace) -> list[Row]:
    """What all processes measured, in the order of their files; a task that was ended and began anew counts once."""
    found = [json.loads(line) for path in sorted(args.work.glob("rows*.jsonl")) for line in path.open(encoding="utf-8")]
    once = {(row["variant"], row["seed"], row["pairs"], row["round"], is_shortcut(row)): row for row in found}
    return sorted(once.values(), key=lambda row: (row["seed"], row["pairs"] or 0))


def prepare(args: argparse.Namespace) -> Context:
    """Profile and selection, the answers to retain, and what the untouched model does."""
    recipe = recipe_for([], args, 0)
    args.work.mkdir(parents=True, exist_ok=True)
    run_recipe(recipe, args.work / "base", text="", reporter=Quiet(), until="select")
    context = Context(recipe, RunFolder(args.work / "base"), Quiet(), load_prompts(recipe.data), verbs=("run",))
    if not any(row["variant"] == "untouched" for row in read_rows(args)):
        row = {"variant": "untouched", "seed": 0, "pairs": None, "round": 0, "steps": 0}
        print("untouched", measure(context, row, args.work / "rows.jsonl", args.split), flush=True)
        retained_exchanges(context, args.work / "retain.jsonl")
    return context


def tasks(args: argparse.Namespace) -> list[Task]:
    """The first seed, the curve over pairs, the other seeds: what is ended early has something of everything."""
    variants = dict(parse_variant(text) for text in args.variant) or VARIANTS
    by_seed = [[Task(name, changes, seed, None) for name, changes in variants.items()] for seed in range(args.seeds)]
    counts = args.pairs if args.pairs is not None else ()
    by_pairs = [Task(name, VARIANTS[name], 0, count) for count in counts for name in ("RASA", "random experts")]
    return list(itertools.chain(*by_seed[:1], by_pairs, *by_seed[1:]))


def run_here(args: argparse.Namespace) -> None:
    """Every task that is not done, or this process's share of them."""
    if args.part is None:
        context, rows = prepare(args), args.work / "rows.jsonl"
    else:
        own = args.work / f"part-{args.part}"
        shutil.copytree(args.work / "base", own, dirs_exist_ok=True)
        recipe = recipe_for([], args, 0)
        context = Context(recipe, RunFolder(own), Quiet(), load_prompts(recipe.data), verbs=("run",))
        rows = args.work / f"rows-{args.part}.jsonl"
    for task in tasks(args)[args.part or 0 :: args.jobs]:
        if not task.is_done(args):
            run_task(context, task, rows, args)


def run_jobs(args: argparse.Namespace) -> None:
    """All tasks, shared among processes; each has one thread of its own for what is not on an accelerator."""
    prepare(args)
    command = [sys.executable, __file__, *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, "--part", str(part)], env=environment) for part in range(args.jobs)]
    failed = [part for part, process in enumerate(processes) if process.wait() != 0]
    if failed:
        raise SystemExit(f"processes {failed} failed; what they measured is kept, the same command goes on")


def parse_variant(text: str) -> tuple[str, list[str]]:
    """`NAME: A.B=C D=E`, or the name of one of VARIANTS."""
    name, found, settings = text.partition(":")
    return (name.strip(), settings.split()) if found else (name, VARIANTS[name])


# ---------------------------------------------------------------- the table


def pooled_rate(rows: list[Row], groups: Sequence[str]) -> Rate:
    """Over seeds and groups, with an interval clustered by goal."""
    pooled = [(goal, label) for row in rows for group in groups for goal, label in row["labels"][group]]
    return rate_with_interval([label for _, label in pooled], [goal for goal, _ in pooled], target(groups[0]))


def rows_of(rows: list[Row], name: str, steps: int, pairs: int | None, *, shortcut: bool = False) -> list[Row]:
    wanted = (name, steps, pairs, shortcut)
    return [row for row in rows if (row["variant"], row["steps"], row["pairs"], is_shortcut(row)) == wanted]


def cells(rows: list[Row], groups: list[str], gold_before: float) -> Iterator[str]:
    for group in groups:
        found = pooled_rate(rows, [group])
        yield f"{found.rate:.2f} [{found.low:.2f}, {found.high:.2f}]"
    losses = [row["gold_loss"] / gold_before - 1 for row in rows]
    yield f"{100 * sum(losses) / len(losses):+.1f} %"


_WRAPPING = {
    "wrapping gap, harmless": "gap_harmless",
    "separation, plainly": "separation_plain",
    "separation, wrapped": "separation_wrapped",
}
"""Column -> field of `Wrapping`."""


def wrapping_cells(rows: list[Row], families: Sequence[str]) -> Iterator[str]:
    """The measures of the wrapping, in points.

    Of one seed with its 95 % interval over goals; of several their mean, with the least and the largest of a seed.
    """
    measured = [measure_wrapping(samples_of(row), families) for row in rows]
    for field in _WRAPPING.values():
        contrasts = [getattr(wrapping, field) for wrapping in measured if wrapping is not None]
        values = [100 * contrast.difference for contrast in contrasts if contrast.difference is not None]
        if len(values) == 1:
            yield f"{values[0]:+.0f} [{100 * contrasts[0].low:+.0f}, {100 * contrasts[0].high:+.0f}]"
        else:
            yield f"{fmean(values):+.0f} ({min(values):+.0f} to {max(values):+.0f})" if values else "-"


def samples_of(row: Row) -> list[Sample]:
    """The samples of one evaluation, without their texts."""
    return [
        Sample(f"{group}/{index}", goal, group, (), "", label_of(result), EVADES if result == "evades" else "")
        for group, pairs in row["labels"].items()
        for index, (goal, result) in enumerate(pairs)
    ]


def table(args: argparse.Namespace) -> str:
    rows = read_rows(args)
    untouched = next(row for row in rows if row["variant"] == "untouched")
    groups = list(untouched["labels"])
    names = [group.replace("attack:", "") for group in groups]
    head = ["method", "steps", "seeds", *names, "gold loss", *_WRAPPING]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]

    def add(title: str, variant: str, steps: int, pairs: int | None = None, *, shortcut: bool = False) -> None:
        some = rows_of(rows, variant, steps, pairs, shortcut=shortcut)
        if some:
            seeds = len({row["seed"] for row in some})
            values = [title, str(steps), str(seeds), *cells(some, groups, untouched["gold_loss"])]
            values += wrapping_cells(some, args.seen)
            lines.append(f"| {' | '.join(values)} |")

    add("untouched", "untouched", 0)
    for name in dict.fromkeys(row["variant"] for row in rows if row["steps"]):
        for steps in sorted({row["steps"] for row in rows}):
            add(name, name, steps)
        add(f"{name}, original routers", name, max(row["steps"] for row in rows), shortcut=True)
    for count in sorted({row["pairs"] for row in rows} - {None}):
        for name in ("RASA", "random experts"):
            add(f"{name}, {count} pairs", name, max(row["steps"] for row in rows), count)
    return "\n".join(lines)


def paired_table(args: argparse.Namespace) -> str:
    """Every other method minus RASA after the most updates that all of them have, on the same goals and seeds."""
    rows = read_rows(args)
    groups = list(next(row for row in rows if row["variant"] == "untouched")["labels"])
    names = list(dict.fromkeys(row["variant"] for row in rows if row["steps"]))
    if "RASA" not in names:
        return "RASA is not measured: no differences from it."
    steps = max(at for at in {row["steps"] for row in rows} if all(rows_of(rows, name, at, None) for name in names))
    head = [f"after {steps} updates, minus RASA", *(group.replace("attack:", "") for group in groups)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in names:
        if name != "RASA":
            sides = [rows_of(rows, one, steps, None) for one in ("RASA", name)]
            lines.append(f"| {' | '.join([name, *(_difference(sides, group) for group in groups)])} |")
    return "\n".join(lines)


def refusal_table(args: argparse.Namespace) -> str:
    """The share of replies that refuse, of every method after the most updates; p against RASA on the same prompts.

    Replies that evade or cannot be judged count as not refused in the share, and the latter are in no comparison.
    """
    rows = read_rows(args)
    groups = list(next(row for row in rows if row["variant"] == "untouched")["labels"])
    steps = max(row["steps"] for row in rows)
    head = [f"refused after {steps} updates", *(group.replace("attack:", "") for group in groups)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    ours = rows_of(rows, "RASA", steps, None)
    for name in dict.fromkeys(row["variant"] for row in rows):
        measured = rows_of(rows, name, steps if name != "untouched" else 0, None)
        if not measured:
            continue
        shares = []
        for group in groups:
            labels = [label for row in measured for _, label in row["labels"][group]]
            share = f"{labels.count('refused') / len(labels):.2f}"
            compared = ours and name not in ("RASA", "untouched")
            shares.append(f"{share}, {_p(_paired([ours, measured], group, 'refused').p)}" if compared else share)
        lines.append(f"| {' | '.join([name, *shares])} |")
    return "\n".join(lines)


def refusal_differences(rows: list[Row]) -> str:
    """Refused by every other method minus by RASA, in points, over the seeds that both have.

    Seeds and goals are resampled (one seed: goals alone, for these trainings); a reply that cannot be judged on either
    side is in no comparison.
    """
    groups = list(next(row for row in rows if row["variant"] == "untouched")["labels"])
    names = [name for name in dict.fromkeys(row["variant"] for row in rows if row["steps"]) if name != "RASA"]
    steps = max(row["steps"] for row in rows)
    ours = rows_of(rows, "RASA", steps, None)
    head = [f"refused after {steps} updates, minus RASA", "seeds", *(g.replace("attack:", "") for g in groups)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in names:
        theirs = {row["seed"]: row for row in rows_of(rows, name, steps, None)}
        pairs = [(row, theirs[row["seed"]]) for row in ours if row["seed"] in theirs]
        if pairs:
            values = [_refused_more(pairs, group) for group in groups]
            lines.append(f"| {' | '.join([name, str(len(pairs)), *values])} |")
    return "\n".join(lines)


def _refused_more(pairs: Sequence[tuple[Row, Row]], group: str) -> str:
    """The second row's refusals minus the first's, with the 95 % interval."""
    goals = sorted({goal for first, _ in pairs for goal, _ in first["labels"][group]})
    place = {goal: index for index, goal in enumerate(goals)}
    sums, counts = np.zeros((2, len(pairs), len(goals)))
    for seed, (first, second) in enumerate(pairs):
        for (goal, ours), (asked, theirs) in zip(first["labels"][group], second["labels"][group], strict=True):
            assert goal == asked
            if "unscored" not in (ours, theirs):
                sums[seed, place[goal]] += (theirs == "refused") - (ours == "refused")
                counts[seed, place[goal]] += 1
    if not counts.any():
        return "-"
    values = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    low, high = seeds_and_goals_interval(values, counts)
    return f"{100 * sums.sum() / counts.sum():+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def _p(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p {value:.3f}"


def _difference(sides: list[list[Row]], group: str) -> str:
    """The second side's rate minus the first's, over the seeds that both have."""
    found = _paired(sides, group, target(group))
    return f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _paired(sides: list[list[Row]], group: str, counted: CountedVerdict) -> Difference:
    seeds = sorted(set.intersection(*({row["seed"] for row in side} for side in sides)))
    kept = [[next(row for row in side if row["seed"] == seed)["labels"][group] for seed in seeds] for side in sides]
    first, second = ([label for rows in side for _, label in rows] for side in kept)
    goals = [goal for rows in kept[0] for goal, _ in rows]
    return paired_difference(first, second, goals, target=counted)


# ---------------------------------------------------------------- the curves


def plot(args: argparse.Namespace) -> None:
    """Attack success and over-refusal over updates and over the number of pairs; intervals as in the table."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), sharey="row", layout="constrained")
    rows = read_rows(args)
    untouched = next(row for row in rows if row["variant"] == "untouched")
    families = {
        "attacks trained on": [f"attack:{name}" for name in args.seen],
        "attacks never seen": [g for g in untouched["labels"] if g.startswith("attack:") and g[7:] not in args.seen],
        "over-refusal (borderline)": ["borderline"],
    }
    for column, (title, wanted) in enumerate(families.items()):
        groups = [group for group in wanted if group in untouched["labels"]]
        if not groups:
            continue
        steps = sorted({row["steps"] for row in rows if row["pairs"] is None})
        by_steps = {
            name: [rows_of(rows, name, at, None) for at in steps]
            for name in dict.fromkeys(row["variant"] for row in rows if row["steps"])
        }
        for points in by_steps.values():
            points[0] = [untouched]
        curves(axes[0, column], steps, by_steps, groups)
        axes[0, column].set(title=title, xlabel="updates")
        counts = sorted({row["pairs"] for row in rows if row["pairs"] is not None})
        by_pairs = {
            name: [rows_of(rows, name, max(steps), count) for count in counts] for name in ("RASA", "random experts")
        }
        curves(axes[1, column], counts, by_pairs, groups)
        axes[1, column].set(xlabel="pairs that selection and repair see")
    axes[0, 0].legend(fontsize="small")
    for row in axes:
        row[0].set(ylabel="rate", ylim=(-0.02, 1.02))
    figure.savefig(args.plot, metadata={"Date": None})


def curves(axis: Axes, places: Sequence[int], found: dict[str, list[list[Row]]], groups: Sequence[str]) -> None:
    for number, (name, points) in enumerate(found.items()):
        rates = [(place, pooled_rate(rows, groups)) for place, rows in zip(places, points, strict=True) if rows]
        shown = [(place, rate, rate.rate) for place, rate in rates if rate.rate is not None]
        x = [place + 0.15 * number for place, _, _ in shown]
        y = [middle for _, _, middle in shown]
        around = [[middle - rate.low for _, rate, middle in shown], [rate.high - middle for _, rate, middle in shown]]
        colour = f"C{list(VARIANTS).index(name)}" if name in VARIANTS else None
        axis.errorbar(x, y, yerr=around, label=name, color=colour, marker="o", markersize=3, linewidth=1, capsize=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="expert updates per round, or router updates alone")
    parser.add_argument("--router-steps", type=int, default=8, help="router updates per round beside an expert step")
    parser.add_argument("--goals", type=int, default=40, help="test goals, and prompts of each other kind")
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="goals to measure on")
    parser.add_argument("--pairs", type=int, nargs="*", metavar="N", help="also the curve over these numbers of pairs")
    parser.add_argument("--shortcut", action="store_true", help="also each result with the original routers put back")
    parser.add_argument("--last-round", action="store_true", help="measure after the last round alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work, on one device")
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME: A.B=C ...", help="measure this, not the usual ones"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe for all variants")
    parser.add_argument("--seen", nargs="+", default=["nested_fiction", "escalation"], help="families to repair")
    parser.add_argument("--unseen", nargs="+", default=["role_play", "forced_opening"], help="families for transfer")
    parser.add_argument("--plot", type=Path, default=None, help="draw what was measured into this file")
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured")
    args = parser.parse_args()
    if args.plot:
        plot(args)
        return
    if args.table:
        tables = [table(args), paired_table(args), refusal_table(args)]
        print(*tables, refusal_differences(read_rows(args)), sep="\n\n")
        return
    require_rates(args)
    if args.jobs > 1 and args.part is None:
        run_jobs(args)
    else:
        run_here(args)


if __name__ == "__main__":
    main()
