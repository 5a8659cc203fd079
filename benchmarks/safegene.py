"""What grafting a gene gives back, against its baselines and without its parts: a table like the paper's.

    python benchmarks/safegene.py TASK_MODEL --gene runs/lab --task task.jsonl --test test.jsonl -o runs/safegene
        [--recipe recipes/lab.yaml] [--shots 0 8 16 32] [--seeds 0 1 2] [--fraction .33] [--answer exact]
        [--set data.test_goals=40 ...] [--json]

Rows: the task's model as it is; then by number of shots the gene's best layers with a coefficient each (SafeGene), the
same with one coefficient for all (task arithmetic), all layers, and as many layers drawn at random. Every row is an
adapter, an evaluation in a run folder of its own and a task score, each kept as soon as it is there: the same command
goes on where it stopped. 0 shots tune nothing, so they have one seed and no global row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seawall.artifacts.graft import Graft
from seawall.config import Recipe, load_recipe
from seawall.errors import NothingToGraftError
from seawall.evaluation.task import score_task
from seawall.pipeline.evaluate import Target, evaluate_target, open_target
from seawall.pipeline.gene_graft import GraftRequest, graft_gene
from seawall.pipeline.gene_shots import read_exchanges
from seawall.pipeline.gene_tools import select_gene
from seawall.pipeline.progress import Quiet, TerminalReporter
from seawall.runs.files import read_json, write_json


@dataclass(frozen=True)
class Row:
    """One way to graft; `layers` is None for the task's model as it is."""

    name: str
    layers: str | None = None
    coefficients: str = "layer"
    shots: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        """Names its files."""
        return self.name if self.layers is None else f"{self.name}-n{self.shots}-s{self.seed}"


def main() -> None:
    options = _options()
    recipe = load_recipe(options.recipe, [f"model.id={json.dumps(options.model)}", *(options.set or ())])
    found = {row.key: {**asdict(row), **_measured(row, options, recipe)} for row in _rows(options)}
    print(json.dumps(found, indent=1) if options.json else _table(found))


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    yield Row("fine-tuned")
    for shots in options.shots:
        for seed in options.seeds if shots else options.seeds[:1]:
            yield Row("safegene", "top", "layer", shots, seed)
            if shots:
                yield Row("global", "top", "global", shots, seed)
            yield Row("all-layers", "all", "layer", shots, seed)
            yield Row("random-layers", "random", "layer", shots, seed)


def _measured(row: Row, options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    folder = options.output / row.key
    if (folder / "row.json").is_file():
        return read_json(folder / "row.json")
    target, facts = Target(), dict[str, Any]()
    if row.layers is not None:
        try:
            facts = {"graft_seconds": _graft(row, options, recipe).seconds}
            target = Target(adapter=options.output / "grafts" / row.key)
        except NothingToGraftError:
            facts = {"turned_down": True}  # then it is the task's model as it is
    reporter = Quiet() if options.json else TerminalReporter()
    done = evaluate_target(recipe, target, folder, text="", reporter=reporter)
    model, tokenizer = open_target(recipe, target)
    score = score_task(model, tokenizer, read_exchanges(options.test), answer=options.answer)
    summary = {key: done.summary[key] for key in ("attacks", "plain_refusal", "over_refusal", "benign_compliance")}
    result = {**facts, **summary, "task": asdict(score.rate)}
    write_json(folder / "row.json", result)
    return result


def _graft(row: Row, options: argparse.Namespace, recipe: Recipe) -> Graft:
    gene = options.output / "genes" / (f"{row.layers}-{row.seed}" if row.layers == "random" else str(row.layers))
    if not gene.is_dir():
        select_gene(options.gene, gene, keep=str(row.layers), fraction=options.fraction, seed=row.seed)
    output = options.output / "grafts" / row.key
    if output.is_dir():
        return Graft.load(output)
    settings = recipe.gene.graft.model_copy(update={"coefficients": row.coefficients})
    config = recipe.gene.model_copy(update={"graft": settings, "seed": row.seed})
    request = GraftRequest(recipe.model, gene, output, shots=row.shots, task=options.task)
    return graft_gene(request, config, recipe.data)


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':24} {'plain refusal':>14} {'worst attack':>13} {'over-refusal':>13} {'task':>7} {'graft, s':>9}"]
    for key, row in found.items():
        worst = max((one["rate"] for one in row["attacks"].values() if one), default=float("nan"))
        rates = [row["plain_refusal"], {"rate": worst}, row["over_refusal"], row["task"]]
        shown = [f"{one['rate']:.3f}" if one else "" for one in rates]
        seconds = f"{row['graft_seconds']:.0f}" if "graft_seconds" in row else "none" if "turned_down" in row else ""
        lines.append(f"{key:24} {shown[0]:>14} {shown[1]:>13} {shown[2]:>13} {shown[3]:>7} {seconds:>9}")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the task's model: a folder or a Hub id")
    parser.add_argument("--gene", type=Path, required=True)
    parser.add_argument("--task", type=Path, required=True, help="JSONL of examples for the shots")
    parser.add_argument("--test", type=Path, required=True, help="JSONL of other examples, for the score")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fraction", type=float, default=1 / 3)
    parser.add_argument("--answer", choices=("exact", "number", "prefix"), default="exact")
    parser.add_argument("--set", action="append")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
