"""Training 12.5 % of the routed experts against training all of them: step time, gradient and optimizer bytes.

    python benchmarks/subset.py [--device cuda --dtype bfloat16] [--implementation grouped_mm] [--json]

Both sides run in this process, on the same random Glm4Moe model and the same batch, in turns; the ratios are of the
fastest of each. Either way only routed experts train, with AdamW and gradient clipping. "Whole stack" is how it is done
without seawall: the stacked parameters themselves take gradients.

The more tokens a step has, the more it is matrix products alone, of which the subset saves only the weight gradients:
the ratio then tends to (2 + fraction) / 3.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from common import add_model_options, build_model, synchronize
from torch import nn

from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe

Step = Callable[[], None]


def main() -> None:
    options = _options()
    moe = find_moe(build_model(options))
    per_layer = max(1, round(options.fraction * moe.num_experts))
    generator = torch.Generator().manual_seed(options.seed)
    selected = [torch.randperm(moe.num_experts, generator=generator)[:per_layer].tolist() for _ in moe.layers]
    batch = torch.randint(moe.model.config.vocab_size, (options.batch, options.length), generator=generator)
    batch = batch.to(options.device)

    times: dict[str, list[float]] = {"whole": [], "subset": []}
    memory: dict[str, int] = {}
    for _ in range(options.repeats):
        for side in times:
            seconds, memory[side] = _measure(moe, batch, selected if side == "subset" else None, options.steps)
            times[side].extend(seconds)
    result = _result(moe, times, memory, options)
    print(json.dumps(result) if options.json else _text(moe, result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--fraction", type=float, default=0.125, help="part of each layer's experts that trains")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps in each turn; the first warms up and is not counted"
    )
    return parser.parse_args()


def _measure(
    moe: MoEModel, batch: torch.Tensor, selected: list[list[int]] | None, steps: int
) -> tuple[list[float], int]:
    """Seconds of each step after the first, and the bytes of gradients and optimizer state."""
    with ExitStack() as context:
        if selected is None:
            parameters = _whole_stack(moe)
        else:
            parameters = list(context.enter_context(trainable_experts(moe, selected)).parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)
        seconds = []
        for _ in range(steps):
            synchronize(batch.device)
            start = time.perf_counter()
            moe.model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            synchronize(batch.device)
            seconds.append(time.perf_counter() - start)
            used = _bytes(parameters, optimizer)
            optimizer.zero_grad(set_to_none=True)
    return seconds[1:], used


def _whole_stack(moe: MoEModel) -> list[nn.Parameter]:
    moe.model.requires_grad_(False)
    parameters = [layer.parameter(name) for layer in moe.layers for name in layer.weights]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _bytes(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [value for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*gradients, *state])


def _result(
    moe: MoEModel, times: dict[str, list[float]], memory: dict[str, int], options: argparse.Namespace
) -> dict[str, object]:
    whole, subset = (min(times[side]) for side in ("whole", "subset"))
    return {
        "model": moe.describe(),
        "device": options.device,
        "dtype": options.dtype,
        "implementation": options.implementation,
        "tokens": options.batch * options.length,
        "fraction": options.fraction,
        "seconds_per_step": {"whole": whole, "subset": subset},
        "step_time_ratio": subset / whole,
        "gradient_and_optimizer_bytes": memory,
        "memory_ratio": memory["subset"] / memory["whole"],
    }


def _text(moe: MoEModel, result: dict[str, object]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in result.items())


if __name__ == "__main__":
    main()
