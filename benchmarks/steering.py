"""What taking the refusal directions of all layers costs, against plain forward passes over the same prompts.

    python benchmarks/steering.py [--model lab] [--prompts 256] [--repeats 3] [--experts] [--json]

Both sides run in this process, on the same batches, in turns; the ratio is of the fastest of each. Extraction reads
the refusal score of every prompt, the input of every layer at five positions and, of an MoE, the routing. `--experts`
adds the directions of all experts, which takes one more pass over the prompts that count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from common import synchronize

from seawall.config import load_recipe
from seawall.config.model import EMBEDDED
from seawall.data.sets import load_prompts
from seawall.data.types import user
from seawall.methods.steer.extract import extract
from seawall.methods.steer.target import Prompt, TargetModel, batches, encode_prompts, last_logits
from seawall.models.moe.find import find_moe_if_any
from seawall.shell.model import open_checkpoint

POSITIONS = (-5, -4, -3, -2, -1)


def main() -> None:
    options = _options()
    changes = [] if options.model in EMBEDDED else ["model.experts_implementation=null"]
    recipe = load_recipe(None, [f"model.id={json.dumps(options.model)}", *changes])
    model, tokenizer = open_checkpoint(recipe.model).load()
    data = load_prompts(recipe.data.model_copy(update={"train_goals": None}))
    goals, benign = data.goals.part("train"), data.benign.part("train")
    sides = [[user(one.text) for one in side] for side in (goals, benign)]
    harmful, harmless = ((encode_prompts(tokenizer, side) * options.prompts)[: options.prompts // 2] for side in sides)
    opening = tokenizer.encode("I'm sorry", add_special_tokens=False)[:1]
    tokens = tuple(options.refusal_tokens or opening)
    target = TargetModel(model, find_moe_if_any(model), "", tokens, options.batch)
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: _plain(target, [harmful, harmless]),
        "layers": lambda: extract(target, harmful, harmless, positions=POSITIONS, experts=False),
    }
    if options.experts:
        work["layers and experts"] = lambda: extract(target, harmful, harmless, positions=POSITIONS)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    _plain(target, [harmful[: options.batch]])  # warms up, and is not counted
    for _ in range(options.repeats):
        for name, run in work.items():
            synchronize(model.device)
            start = time.perf_counter()
            run()
            synchronize(model.device)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    result = {
        "model": recipe.model.id,
        "prompts": len(harmful) + len(harmless),
        "distinct": len({one.text for one in (*harmful, *harmless)}),
        "seconds": {name: round(value, 2) for name, value in best.items()},
        "ratio": {name: round(value / best["plain"], 3) for name, value in best.items()},
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def _plain(target: TargetModel, sides: list[list[Prompt]]) -> None:
    for side in sides:
        for _, batch in batches(side, target.batch_size):
            last_logits(target.model, batch)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="`lab`, a folder, or a Hub id")
    parser.add_argument(
        "--prompts", type=int, default=256, help="of both sides together; repeated where there are less"
    )
    parser.add_argument("--batch", type=int, default=32, help="prompts of a forward pass")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--experts", action="store_true", help="also the directions of all experts")
    parser.add_argument(
        "--refusal-tokens", type=int, nargs="+", default=None, help='ids; the first of "I\'m sorry" unless given'
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
