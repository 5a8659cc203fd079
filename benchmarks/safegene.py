"""What grafting a gene gives back, against its baselines and without its parts: a table like the paper's.

    python benchmarks/safegene.py TASK_MODEL --aligned lab --gene runs/lab-gene --task task.jsonl --test test.jsonl
        -o runs/safegene/task-seed-0 [--recipe recipes/lab.yaml] [--shots 0 8 16 32] [--controls 16] [--seed 0]
        [--anchor runs/tune/tune/anchor | --base lab-original] [--drop .5] [--fraction .33] [--answer exact]
        [--rows safegene-n16 resta-n16 ...] [--set data.test_goals=40 ...]
    python benchmarks/safegene.py --table runs/safegene/*           # over tasks and seeds, with what was recovered

TASK_MODEL is a checkpoint or the folder of an adapter, which is merged once. Rows: the aligned model; the task's model
as it is; by number of shots the gene's best layers with a coefficient each (`safegene`) and, with the same shots,
safety fine-tuning once more (`safety-sft`, at all points); at `--controls` also one coefficient for all (`global`: task
arithmetic), all layers (`all-layers`), as many layers drawn at random (`random-layers`) and RESTA without and with
DARE (`resta`, `resta-dare`: the whole gene with one coefficient; DARE needs an adapter as TASK_MODEL); with
`--anchor` or `--base`, the task's adapter projected by Safe LoRA (`safelora`) or merged with the gene by SafeMERGE
(`safemerge`), which use no shots. 0 shots tune nothing, so they have no safety fine-tuning and no global row. `--rows`
measures these alone, beside the aligned and the fine-tuned model.
Every row is evaluated in a run folder of its own and kept: the same command goes on where it stopped, and one with
other inputs is refused.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from seawall.artifacts.adapter import ADAPTER_CONFIG
from seawall.artifacts.anchor import NAME as ANCHOR
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import Graft, GraftForm
from seawall.artifacts.tuning import student_half
from seawall.config import Recipe, load_recipe
from seawall.config.gene import PROJECTING, GraftMethod
from seawall.config.model import ModelConfig
from seawall.data.sets import load_prompts
from seawall.errors import NothingToGraftError
from seawall.evaluation.task import score_task
from seawall.jobs.evaluate import EvalTarget, evaluate_target, open_target
from seawall.methods.gene.graft import GraftRequest, gene_folder, graft_gene
from seawall.methods.gene.shots import read_exchanges
from seawall.methods.gene.tools import select_gene
from seawall.models.files.save import save_model
from seawall.models.lora.merge import load_merged
from seawall.runs.files import canonical_hash, file_hash, publish, read_json, write_json
from seawall.runs.progress import Quiet
from seawall.shell.model import open_checkpoint

_RATES = ("plain_refusal", "over_refusal", "benign_compliance")


@dataclass(frozen=True)
class Row:
    """One model of the table; `layers` is None where no gene is grafted."""

    name: str
    layers: str | None = None
    coefficients: Literal["layer", "global"] = "layer"
    method: GraftMethod = "gene"
    shots: int | None = None
    drop: float | None = None

    @property
    def merged(self) -> bool:
        """Whether the result is a checkpoint, made of the task's own adapter."""
        return self.method in PROJECTING or self.drop is not None

    @property
    def key(self) -> str:
        """Names its files."""
        return self.name if self.shots is None else f"{self.name}-n{self.shots}"


def main() -> None:
    options = _options()
    if options.table:
        print(_summary([read_table(folder) for folder in options.table]))
        return
    recipe = load_recipe(options.recipe, options.set)
    _require_apart(options)
    _require_same(options, recipe)
    found = {}
    for row in _wanted(options):
        found[row.key] = _measured(row, options, recipe)
        print(_line(row.key, found[row.key]), flush=True)


def read_table(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of one command, in its order."""
    names = read_json(folder / "inputs.json")["rows"]
    rows = {name: folder / "rows" / name / "row.json" for name in names}
    return {name: read_json(path) for name, path in rows.items() if path.is_file()}


def _wanted(options: argparse.Namespace) -> list[Row]:
    """The rows of the command; all but the first two must be named by `--rows`, if it is given."""
    first, second, *others = _rows(options)
    unknown = set(options.rows) - {row.key for row in others}
    if unknown:
        sys.exit(f"--rows {' '.join(sorted(unknown))}: choose from {' '.join(row.key for row in others)}")
    return [first, second, *(row for row in others if not options.rows or row.key in options.rows)]


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    yield Row("aligned")
    yield Row("fine-tuned")
    if options.anchor is not None or options.base is not None:
        yield Row("safelora", method="safelora")
        yield Row("safemerge", "all", method="safemerge")
    for shots in options.shots:
        yield Row("safegene", "top", shots=shots)
        if shots:
            yield Row("safety-sft", "all", method="safety_sft", shots=shots)
        if shots in options.controls:
            yield Row("all-layers", "all", shots=shots)
            yield Row("random-layers", "random", shots=shots)
            yield Row("resta", "all", method="resta", shots=shots)
            if _is_adapter(options.model):
                yield Row("resta-dare", "all", method="resta", shots=shots, drop=options.drop)
            if shots:
                yield Row("global", "top", "global", shots=shots)


def _measured(row: Row, options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    folder = options.output / "rows" / row.key
    if (folder / "row.json").is_file():
        return read_json(folder / "row.json")
    model, target, facts = _task_checkpoint(options, recipe), EvalTarget(), dict[str, Any]()
    if row.name == "aligned":
        model = options.aligned
    elif row.name != "fine-tuned":
        graft = options.output / "grafts" / row.key
        try:
            facts = _facts(_graft(row, options, recipe, graft))
        except NothingToGraftError:
            facts = {"turned_down": True}  # then it is the task's model as it is
        else:
            model, target = (graft, target) if row.merged else (model, EvalTarget(adapter=graft))
    named = recipe.model_copy(update={"model": _named(recipe, model)})
    done = evaluate_target(named, target, folder, text="", reporter=Quiet())
    opened, tokenizer = open_target(named, target, Quiet())
    score = score_task(
        opened, tokenizer, read_exchanges(options.test), answer=options.answer, batch_size=recipe.eval.batch_size
    )
    attacks = {name: rate for name, rate in done.summary["attacks"].items() if rate}
    rates = {name: done.summary[name] for name in _RATES} | {"task": asdict(score.rate)}
    write_json(folder / "row.json", {**facts, "attacks": attacks, **rates})
    return read_json(folder / "row.json")


def _facts(graft: Graft) -> dict[str, Any]:
    return {"graft_seconds": graft.seconds, "coefficients": list(graft.coefficients.values())}


def _graft(row: Row, options: argparse.Namespace, recipe: Recipe, output: Path) -> Graft:
    if output.is_dir():
        return Graft.load(output)
    changed: dict[str, Any] = {"coefficients": row.coefficients, "method": row.method, "drop": row.drop}
    if row.method in PROJECTING:
        changed["anchor"] = None if options.anchor is None else str(options.anchor)
        changed["base"] = None if options.base is None else ModelConfig(id=options.base)
    gene = None if row.method == "safelora" else _selected(row, options)
    task = options.task if row.shots else None
    model = options.model if row.merged else _task_checkpoint(options, recipe)
    form: GraftForm = "merged" if row.merged else "adapter"
    request = GraftRequest(_named(recipe, model), gene, output, row.shots or 0, task, form)
    graft = recipe.gene.graft.model_copy(update=changed)
    return graft_gene(request, recipe.gene.model_copy(update={"graft": graft, "seed": options.seed}), recipe.data)


def _selected(row: Row, options: argparse.Namespace) -> Path:
    gene: Path = options.output / "genes" / str(row.layers)
    if not gene.is_dir():
        select_gene(options.gene, gene, keep=str(row.layers), fraction=options.fraction, seed=options.seed)
    return gene


def _named(recipe: Recipe, model: str | Path) -> ModelConfig:
    return recipe.model.model_copy(update={"id": str(model)})


def _is_adapter(model: str) -> bool:
    return (Path(model) / ADAPTER_CONFIG).is_file()


def _task_checkpoint(options: argparse.Namespace, recipe: Recipe) -> Path:
    """The task's model as a checkpoint; an adapter is merged into its base once."""
    given = Path(options.model)
    merged: Path = options.output / "task-model"
    if not (given / ADAPTER_CONFIG).is_file() or merged.is_dir():
        return merged if merged.is_dir() else given
    base = read_json(given / ADAPTER_CONFIG)["base_model_name_or_path"]
    model, tokenizer = load_merged(open_checkpoint(_named(recipe, base)), given, print)
    scratch = merged.with_name("task-model.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of a command that was interrupted
    save_model(model, tokenizer, scratch)
    publish(scratch, merged)
    return merged


def _require_apart(options: argparse.Namespace) -> None:
    both = {str(one.prompt) for one in read_exchanges(options.task)} & {
        str(one.prompt) for one in read_exchanges(options.test)
    }
    if both:
        sys.exit(f"{len(both)} prompts are in {options.task} and in {options.test}: shots would be scored")


def _require_same(options: argparse.Namespace, recipe: Recipe) -> None:
    """Rows of other inputs are no rows of this table; rows that an earlier command made stay in it."""
    sections = recipe.model_dump(mode="json", include={"seed", "model", "data", "eval", "gene"})
    adapter, anchor = Path(options.model) / ADAPTER_CONFIG, options.anchor
    inputs = {
        "task_model": _weights(options.model),
        "task_adapter": file_hash(adapter) if adapter.is_file() else None,
        "aligned": options.aligned,
        "aligned_weights": _weights(options.aligned),
        "gene": Gene.load(gene_folder(options.gene)).fingerprint,
        "files": [file_hash(options.task), file_hash(options.test)],
        "prompts": load_prompts(recipe.data).fingerprint(),
        "settings": [options.fraction, options.answer, options.seed, canonical_hash(sections)],
    }
    if anchor is not None:
        inputs["anchor"] = file_hash(anchor / f"{ANCHOR}.json")
    if options.base is not None:
        inputs["base"] = options.base
    path = options.output / "inputs.json"
    before = read_json(path) if path.is_file() else {"inputs": {}, "rows": []}
    known = before["inputs"]
    changed = sorted(name for name in known.keys() & inputs.keys() if known[name] != inputs[name])
    if changed:
        sys.exit(f"{options.output} holds a table of other inputs ({', '.join(changed)}): use another -o")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = list(dict.fromkeys([*(row.key for row in _wanted(options)), *before["rows"]]))
    write_json(path, {"inputs": {**known, **inputs}, "rows": rows})


def _weights(model: str) -> dict[str, str] | str:
    """Hashes of a local model's weights, else its name."""
    return {one.name: file_hash(one) for one in sorted(Path(model).glob("*.safetensors"))} or model


def _line(key: str, row: dict[str, Any]) -> str:
    shown = [f"{row[name]['rate']:.3f}" for name in ("plain_refusal", "over_refusal", "task")]
    attacks = ", ".join(f"{name} {rate['rate']:.2f}" for name, rate in row["attacks"].items())
    spent = f", {row['graft_seconds']:.0f} s" if "graft_seconds" in row else ""
    return f"{key}: plain refusal {shown[0]}, over-refusal {shown[1]}, task {shown[2]}, attacks {attacks}{spent}"


def _summary(tables: Sequence[dict[str, dict[str, Any]]]) -> str:
    """Means over the tables with Student's 95 % interval; differences to the fine-tuned model are taken in each.

    A table that was interrupted before its first two rows has nothing to compare with, and does not count.
    """
    tables = [table for table in tables if {"aligned", "fine-tuned"} <= table.keys()]
    names = list(dict.fromkeys(name for table in tables for name in table))
    attacks = list(dict.fromkeys(name for table in tables for row in table.values() for name in row["attacks"]))
    heads = ("plain refusal", "recovered", "over-refusal", "benign answered", "task +", *attacks)
    lines = [f"{f'mean of {len(tables)} tables [95 %]':26}{''.join(f'{head:>22}' for head in heads)}{'s':>6}{'of':>4}"]
    for name in names:
        rows = [(table[name], table["fine-tuned"], table["aligned"]) for table in tables if name in table]
        columns = [
            [row["plain_refusal"]["rate"] for row, _, _ in rows],
            [_recovered(row, tuned, aligned) for row, tuned, aligned in rows],
            [row["over_refusal"]["rate"] for row, _, _ in rows],
            [row["benign_compliance"]["rate"] for row, _, _ in rows],
            [row["task"]["rate"] - tuned["task"]["rate"] for row, tuned, _ in rows],
            *([row["attacks"].get(name, {}).get("rate", math.nan) for row, _, _ in rows] for name in attacks),
        ]
        seconds = [row["graft_seconds"] for row, _, _ in rows if "graft_seconds" in row]
        shown = "".join(f"{_interval(column):>22}" for column in columns)
        lines.append(f"{name:26}{shown}{f'{fmean(seconds):.0f}' if seconds else '':>6}{len(rows):>4}")
    return "\n".join(lines)


def _recovered(row: dict[str, Any], tuned: dict[str, Any], aligned: dict[str, Any]) -> float:
    """The part of the plain refusals which fine-tuning lost that the row has back."""
    lost = aligned["plain_refusal"]["rate"] - tuned["plain_refusal"]["rate"]
    return (row["plain_refusal"]["rate"] - tuned["plain_refusal"]["rate"]) / lost if lost > 0 else math.nan


def _interval(values: Sequence[float]) -> str:
    """`81.2 [70.1, 92.3]`, in points."""
    known = [100 * one for one in values if not math.isnan(one)]
    if len(known) < 2:
        return "-" if not known else f"{known[0]:.1f}"
    half = student_half(known)
    return f"{fmean(known):.1f} [{fmean(known) - half:.1f}, {fmean(known) + half:.1f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="the task's model: a checkpoint, or the folder of an adapter")
    parser.add_argument("--table", type=Path, nargs="+", help="print the means over these output folders instead")
    parser.add_argument("--aligned", default="lab", help="the aligned model that the gene is of")
    parser.add_argument("--gene", type=Path)
    parser.add_argument("--task", type=Path, help="JSONL of examples for the shots")
    parser.add_argument("--test", type=Path, help="JSONL of other examples, for the score")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 8, 16, 32])
    parser.add_argument("--controls", type=int, nargs="*", default=[0, 16], help="shots at which controls are run too")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="these alone, such as safegene-n16")
    parser.add_argument("--seed", type=int, default=0, help="of the shots and the layers drawn")
    parser.add_argument("--anchor", type=Path, default=None, help="for Safe LoRA: an anchor of `seawall tune`")
    parser.add_argument("--base", default=None, help="in its place: the model that the aligned one was trained from")
    parser.add_argument("--drop", type=float, default=0.5, help="of RESTA with DARE")
    parser.add_argument("--fraction", type=float, default=1 / 3)
    parser.add_argument("--answer", choices=("exact", "number", "prefix"), default="exact")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if not options.table:
        missing = [name for name in ("model", "gene", "task", "test", "output") if getattr(options, name) is None]
        if missing:
            parser.error(f"missing: {', '.join(missing)}")
        options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    main()
