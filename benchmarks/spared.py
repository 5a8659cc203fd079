"""What sorted experts and shared first passes spare, on the embedded model: ratios of processor time.

    python benchmarks/spared.py [--batches 1] [--rows 48] [--tokens 20] [--attacks 6] [--json]

Both sides of a ratio run in turns in one process, of one thread, and must give the same: replies token for token,
gradients bit for bit. Replies are to the test prompts of the recipe, in the batches of its evaluation; an update has
as many attacks as harmless prompts, with refusals as long as ours.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config import load_recipe
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts, load_prompts
from seawall.data.templating import encode_prompt
from seawall.data.types import Exchange
from seawall.evaluation.suite import build_suite
from seawall.methods.rasa.repair.inputs import RepairInputs
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.models.decoding import TokenIds, decoding_for
from seawall.models.generate import decode_batch
from seawall.models.greedy import rows_are_independent
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import find_moe
from seawall.shell.model import open_checkpoint

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "Here is what you can do first, and what comes after it, in a few short steps."


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    recipe = load_recipe(None, [])
    model, tokenizer = open_checkpoint(recipe.model).load()
    prompts = load_prompts(recipe.data)
    rows_are_independent(model)
    result = {
        "replies": _replies(model, tokenizer, prompts, options),
        "update": _update(model, tokenizer, prompts, recipe, options.attacks),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{part}: {row}" for part, row in result.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=1, help="batches of replies, evenly among those of the suite")
    parser.add_argument("--rows", type=int, default=48, help="prompts of a batch")
    parser.add_argument("--tokens", type=int, default=20, help="new tokens per prompt, at most")
    parser.add_argument("--attacks", type=int, default=6, help="attacks of the update")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, options: argparse.Namespace
) -> dict[str, Any]:
    suite = build_suite(prompts, gold=False, wrapping=True).prompts()
    encoded = sorted((tuple(encode_prompt(tokenizer, row.prompt)) for row in suite), key=len, reverse=True)
    starts = range(0, len(encoded), options.rows)
    batches = [encoded[start : start + options.rows] for start in starts[:: -(-len(starts) // options.batches)]]
    decoding = decoding_for(model, tokenizer, options.tokens)

    def replies(implementation: str, share: bool) -> list[list[TokenIds]]:
        model.config._experts_implementation = implementation
        with patch("seawall.models.greedy.plan_of", (lambda _: None)) if not share else patch.dict({}):
            return [decode_batch(model, batch, decoding) for batch in batches]

    sides = {
        "whole, eager": lambda: replies("eager", share=False),
        "whole, sorted": lambda: replies("sorted", share=False),
        "shared, sorted": lambda: replies("sorted", share=True),
    }
    return _compared(sides)


def _update(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, recipe: Recipe, count: int
) -> dict[str, Any]:
    pairs = prompts.pairs("train")[:count]
    refusals = [Exchange(pair.attack, REFUSAL, pair.goal) for pair in pairs]
    retain = [Exchange(item.prompt, ANSWER) for item in prompts.retain[:count]]
    moe = find_moe(model)
    first = moe.layers[0].decoder_layer
    losses = RepairLosses(moe, tokenizer, RepairInputs(pairs, refusals, retain), recipe.repair, first_changed=first)
    batch = (list(range(len(refusals))), list(range(len(retain))))

    def update(implementation: str) -> list[Tensor]:
        model.config._experts_implementation = implementation
        with trainable_experts(moe, [(1, 5, 9, 20)] * moe.num_layers) as copies:
            for loss, _ in losses.expert_loss(batch):
                torch.autograd.backward(loss)
            return [copy.grad for copy in copies.parameters() if copy.grad is not None]

    return _compared({"eager": lambda: update("eager"), "sorted": lambda: update("sorted")})


def _compared(sides: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Seconds of each side, their ratio to the first, and whether all give the same."""
    seconds: dict[str, float] = {}
    values: dict[str, Any] = {}
    for name, side in sides.items():
        start = _clock()
        values[name] = side()
        seconds[name] = _clock() - start
    first = next(iter(sides))
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ratio": {name: round(value / seconds[first], 3) for name, value in seconds.items() if name != first},
        "same": all(_same(value, values[first]) for value in values.values()),
    }


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def _clock() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
