"""Prefill speed with routing captured, against the same model without.

    python benchmarks/capture.py [--device cuda --dtype bfloat16] [--implementation grouped_mm] [--json]

All sides run in this process, on the same random Glm4Moe model and the same batch, in turns; the ratios are of the
fastest of each. `capture` keeps indices and weights, `logits` the routers' logits too, `counts` reduces each pass to
counts per expert.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from common import add_model_options, build_model, synchronize

from seawall.models.moe.capture import capture, routing_counts
from seawall.models.moe.find import MoEModel, find_moe

Prefill = Callable[[MoEModel, torch.Tensor], None]


def main() -> None:
    options = _options()
    moe = find_moe(build_model(options))
    generator = torch.Generator().manual_seed(options.seed)
    batch = torch.randint(moe.model.config.vocab_size, (options.batch, options.length), generator=generator)
    batch = batch.to(options.device)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with torch.inference_mode():
        for prefill in SIDES.values():
            prefill(moe, batch)  # warms up
        for _ in range(options.repeats):
            for side, prefill in SIDES.items():
                seconds[side].append(_time(prefill, moe, batch))
    result = _result(moe, seconds, options)
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11, help="turns of each side")
    return parser.parse_args()


def _plain(moe: MoEModel, batch: torch.Tensor) -> None:
    moe.model(input_ids=batch, use_cache=True)


def _capture(moe: MoEModel, batch: torch.Tensor) -> None:
    with capture(moe):
        moe.model(input_ids=batch, use_cache=True)


def _logits(moe: MoEModel, batch: torch.Tensor) -> None:
    with capture(moe, logits=True):
        moe.model(input_ids=batch, use_cache=True)


def _counts(moe: MoEModel, batch: torch.Tensor) -> None:
    with capture(moe) as trace:
        moe.model(input_ids=batch, use_cache=True)
        routing_counts(trace, torch.ones(batch.numel(), dtype=torch.bool, device=batch.device))


SIDES: dict[str, Prefill] = {"plain": _plain, "capture": _capture, "logits": _logits, "counts": _counts}


def _time(prefill: Prefill, moe: MoEModel, batch: torch.Tensor) -> float:
    synchronize(batch.device)
    start = time.perf_counter()
    prefill(moe, batch)
    synchronize(batch.device)
    return time.perf_counter() - start


def _result(moe: MoEModel, seconds: dict[str, list[float]], options: argparse.Namespace) -> dict[str, object]:
    fastest = {side: min(values) for side, values in seconds.items()}
    tokens = options.batch * options.length
    return {
        "model": moe.describe(),
        "device": options.device,
        "dtype": options.dtype,
        "implementation": options.implementation,
        "tokens": tokens,
        "tokens_per_second": {side: round(tokens / value, 1) for side, value in fastest.items()},
        "speed_ratio": {side: round(fastest["plain"] / value, 4) for side, value in fastest.items() if side != "plain"},
    }


if __name__ == "__main__":
    main()
