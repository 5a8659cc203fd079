"""Generating with the transformers engine at its automatic batch size against one prompt at a time.

    python benchmarks/generation.py [--model lab] [--prompts 64] [--tokens 20] [--json]

Both sides run in this process, on the same model and the same prompts (the recipe's attacks and plain goals), and must
write the same texts. Tokens are those of the replies; both sides write equally many, so the ratio is that of the times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
from common import synchronize

from seawall.config import load_recipe
from seawall.config.model import EMBEDDED
from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.data.templating import encode_prompt
from seawall.data.types import Messages
from seawall.evaluation.engines import Engine, Reply
from seawall.evaluation.engines.transformers import TransformersEngine
from seawall.evaluation.suite import build_suite
from seawall.models.memory import automatic_batch_size
from seawall.shell.model import open_checkpoint


def main() -> None:
    options = _options()
    recipe = _recipe(options)
    model, tokenizer = open_checkpoint(recipe.model).load()
    prompts = _prompts(recipe, options.prompts)
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    size = automatic_batch_size(model, longest + options.tokens)
    sides = {"batches": TransformersEngine(model, tokenizer, "auto"), "one": TransformersEngine(model, tokenizer, 1)}
    for engine in sides.values():
        _timed(engine, prompts[:2], 2, model.device)  # warms up, and is not counted
    found = {name: _timed(engine, prompts, options.tokens, model.device) for name, engine in sides.items()}
    texts = {name: [reply.text for reply in replies] for name, (replies, _) in found.items()}
    rates = {name: sum(reply.tokens or 0 for reply in replies) / seconds for name, (replies, seconds) in found.items()}
    result = {
        "model": recipe.model.id,
        "prompts": len(prompts),
        "new_tokens": options.tokens,
        "batch_size": size,
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["batches"] / rates["one"], 2),
        "same_texts": texts["batches"] == texts["one"],
    }
    print(json.dumps(result) if options.json else _text(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="`lab`, a folder, or a Hub id")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20, help="new tokens per prompt, at most")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _recipe(options: argparse.Namespace) -> Recipe:
    changes = [] if options.model in EMBEDDED else ["model.experts_implementation=null"]
    return load_recipe(None, [f"model.id={json.dumps(options.model)}", *changes])


def _prompts(recipe: Recipe, count: int) -> list[Messages]:
    """The first prompts of the evaluation, every group in turn, so that lengths are as mixed as they are there."""
    groups = build_suite(load_prompts(recipe.data), gold=False).groups.values()
    rows = [
        prompt for place in range(max(map(len, groups))) for group in groups for _, prompt in group[place : place + 1]
    ]
    return rows[:count]


def _timed(engine: Engine, prompts: Sequence[Messages], tokens: int, device: torch.device) -> tuple[list[Reply], float]:
    """The replies in the order of the prompts, and the seconds that they took."""
    replies: dict[int, Reply] = {}
    synchronize(device)
    start = time.perf_counter()
    engine(
        prompts,
        max_new_tokens=tokens,
        lengths=(),
        on_replies=lambda at, done: replies.update(zip(at, done, strict=True)),
    )
    synchronize(device)
    return [replies[at] for at in range(len(prompts))], time.perf_counter() - start


def _text(result: dict[str, object]) -> str:
    rates = result["tokens_per_second"]
    same = "the same texts" if result["same_texts"] else "DIFFERENT TEXTS"
    return f"{result['model']}, {result['prompts']} prompts: {rates} tokens/s, ratio {result['ratio']}, {same}"


if __name__ == "__main__":
    main()
