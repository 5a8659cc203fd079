"""Refusals of models on public prompts that no repair trains on, plainly and inside the attacks' wrappings.

    python benchmarks/held_out.py --data ../shared/data --work runs/held-out lab runs/demo/model

Harmful: AdvBench goals after the first 80, on which the embedded model was taught. Harmless: XSTest's safe prompts, and
instructions of self-instruct without an input, a part of which healed the embedded model. The models are evaluated one
after the other with the embedded recipe's settings; an evaluation that was interrupted goes on. The table has one
column for each model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.artifacts.evaluation import Contrast, Rate, Wrapping
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, WRAPPED, WRAPPED_BORDERLINE, attack_group
from seawall.config import load_recipe
from seawall.evaluation.rates import refusal_rates
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.jobs.evaluate import EvalTarget, evaluate_target
from seawall.runs.progress import Quiet
from seawall.shell.evaluated import STAGE

TAUGHT = 80
"""First AdvBench goals, which `scripts/lab_delta.py` teaches the embedded model to refuse."""


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts(data: Path, count: int, seed: int) -> dict[str, list[str]]:
    """Public prompts by kind, `count` of each."""
    harmful = [row["prompt"] for row in rows(data / "harmful_prompts.jsonl") if row["source"] == "advbench"][TAUGHT:]
    borderline = [row["prompt"] for row in rows(data / "xstest_dev.jsonl") if row["label"] == "safe"]
    benign = [row["instruction"] for row in rows(data / "benign_instructions.jsonl") if not row["input"]]
    kinds = {"harmful": harmful, "borderline": borderline, "benign": [text for text in benign if len(text) < 200]}
    return {name: random.Random(seed).sample(texts, min(count, len(texts))) for name, texts in kinds.items()}


def write_sources(folder: Path, kinds: dict[str, list[str]]) -> list[str]:
    """Writes one file for each kind; returns the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = []
    for name, texts in kinds.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": text, "split": "test"}) + "\n" for text in texts), "utf-8")
        settings.append(f"data.{name}={{kind: jsonl, path: {path}}}")
    return settings


@dataclass(frozen=True)
class Measured:
    """The rates of one model by group, those of attacks as refusals, and the measures of the wrapping."""

    rates: Mapping[str, Rate]
    wrapping: Wrapping | None


def table(results: dict[str, Measured], seen: Sequence[str], unseen: Sequence[str]) -> str:
    """One column for each model, rates with their intervals."""
    groups = {"plain harmful refused": PLAIN}
    groups |= {f"refused inside {name} (seen)": attack_group(name) for name in seen}
    groups |= {f"refused inside {name}": attack_group(name) for name in unseen}
    groups |= {"XSTest-safe refused": BORDERLINE, "XSTest-safe refused inside the wrappings": WRAPPED_BORDERLINE}
    groups |= {"benign answered": BENIGN, "benign answered inside the wrappings": WRAPPED}
    lines = [row(["", *results]), "|" + "---|" * (len(results) + 1)]
    for title, group in groups.items():
        lines.append(row([title, *(rate(result.rates[group]) for result in results.values())]))
    for title in ("gap_harmless", "separation_plain", "separation_wrapped"):
        measured = [None if result.wrapping is None else getattr(result.wrapping, title) for result in results.values()]
        lines.append(row([title.replace("_", " "), *map(contrast, measured)]))
    return "\n".join(lines)


def row(cells: Iterable[str]) -> str:
    """One line of the table."""
    return f"| {' | '.join(cells)} |"


def rate(value: Rate) -> str:
    """`.95 [.86, .99]`."""
    return "-" if value.rate is None else f"{value.rate:.2f} [{value.low:.2f}, {value.high:.2f}]"


def contrast(value: Contrast | None) -> str:
    """`+6 [-3, +15]` in points."""
    if value is None or value.difference is None:
        return "-"
    return f"{100 * value.difference:+.0f} [{100 * value.low:+.0f}, {100 * value.high:+.0f}]"


def main() -> None:
    """Measures every model and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="lab, a folder, or a Hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder with the public prompts")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--count", type=int, default=60, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    args = parser.parse_args()
    sources = write_sources(args.work.resolve() / "prompts", prompts(args.data, args.count, args.seed))
    caps = [f"data.test_{name}={args.count}" for name in ("goals", "benign", "borderline")]
    results = {}
    for index, model in enumerate(args.models):
        changes = [*sources, *caps, "eval.gold=false", f"model.id={model}", *args.set]
        recipe = load_recipe(args.recipe, changes)
        folder = args.work / f"model-{index}"
        evaluation = evaluate_target(recipe, EvalTarget(), folder, text="", reporter=Quiet())
        refusals = refusal_rates(load_samples(evaluation.run.stage(STAGE) / SAMPLES))
        results[model] = Measured({**evaluation.result.groups, **refusals}, evaluation.result.wrapping)
        print(model, "measured", flush=True)
    print(table(results, recipe.data.attacks_seen, recipe.data.attacks_unseen))


if __name__ == "__main__":
    main()
