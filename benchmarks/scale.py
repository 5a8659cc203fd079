"""Costs at the shapes of large models, with random weights: profile, training steps, a round, export, plan, growth.

    python benchmarks/scale.py --shape olmoe --layers 1 [--device cuda] [--parts profile,steps]
    python benchmarks/scale.py --shape qwen3-30b --experts 768 --device cuda
    python benchmarks/scale.py --shape olmoe --device cuda --memory 24

All sides of a ratio run in this process, on the same model and batch, in turns; ratios are of the fastest of each. On a
CPU times are processor time on one thread, so other processes matter less. Results are written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from planned import plan
from round_of_repair import repair_round
from shapes import SHAPES, Setting, training_side

from seawall.models.moe.capture import capture, routing_counts_by_row
from seawall.models.moe.find import find_moe
from seawall.models.plan.slices import timed

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = _options()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    setting = _setting(options)
    if options.memory is not None:
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory * 1e9 / total))
    result: dict[str, Any] = {
        "shape": setting.shape,
        "layers": setting.layers,
        "layers_of_the_model": SHAPES[setting.shape]["layers"],
        "vocabulary": setting.vocabulary,
        "tokens": setting.rows * setting.length,
        "fraction": setting.fraction,
        "device": str(setting.device),
        "dtype": setting.dtype,
        "torch": torch.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    name = f"scale-{setting.shape}-{setting.layers}-{setting.device.type}{options.name}.json"
    for part in options.parts.split(","):
        print(f"{part} ...", file=sys.stderr)
        result[part] = PARTS[part](setting)
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="decoder layers; default: those of the model")
    parser.add_argument("--vocabulary", type=int, help="default: that of the model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--fraction", type=float, default=0.125, help="share of each layer's experts that trains")
    parser.add_argument("--experts", type=int, help="experts that train in the whole model, in place of --fraction")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, help="cap of this process on the GPU, in GB")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--name", default="", help="added to the name of the results file")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Setting:
    shape = SHAPES[options.shape]
    fraction = options.fraction
    if options.experts is not None:
        fraction = options.experts / (shape["layers"] * shape["experts"])
    return Setting(
        options.shape,
        options.layers or shape["layers"],
        options.vocabulary or shape["size"],
        options.rows,
        options.length,
        torch.device(options.device),
        options.dtype,
        fraction,
        options.repeats,
    )


def profile(setting: Setting) -> dict[str, Any]:
    """A pass that counts routing by row, as the profile does, against the plain pass."""
    model = setting.model()
    moe, ids_BT = find_moe(model), setting.ids(model)
    rows_T = torch.arange(len(ids_BT), device=model.device).repeat_interleave(setting.length)
    mask_T = torch.ones_like(rows_T, dtype=torch.bool)

    def plain() -> None:
        model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)

    def counted() -> None:
        with capture(moe) as trace:
            plain()
        routing_counts_by_row(trace, mask_T, rows_T, num_rows=len(ids_BT))

    with torch.no_grad():
        seconds = _in_turns(setting, {"plain": plain, "counted": counted})
    return {"seconds": seconds, "ratio": round(seconds["counted"] / seconds["plain"], 4)}


def steps(setting: Setting) -> dict[str, Any]:
    """A training step of a share of the experts, of all experts, of all weights, and the lower bound of each.

    The bound is a forward and backward pass in which no weight takes a gradient and nothing is updated.
    """
    model = setting.model()
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}
    for side in ("bound", "subset", "stack", "full"):
        with training_side(setting, model, side) as (parameters, step):
            step()  # warms up, and allocates the optimizer's state
            seconds[side] = min(timed(model.device, step, setting.clock) for _ in range(setting.repeats))
            memory[side] = sum(3 * value.numel() * value.element_size() for value in parameters)
    return {
        "seconds": _rounded(seconds),
        "subset_to": {side: round(seconds["subset"] / seconds[side], 3) for side in ("bound", "stack", "full")},
        "gradient_and_state_bytes": memory,
        "subset_bytes_to": {side: round(memory["subset"] / memory[side], 4) for side in ("stack", "full")},
    }


def round_of_rasa(setting: Setting) -> dict[str, Any]:
    """One round of the repair itself: expert step, router step, checkpoint, validation, choice of the round."""
    return repair_round(setting.model(), setting.fraction, setting.clock)


def export(setting: Setting) -> dict[str, Any]:
    """Writing the checkpoint, with the hashes of its files."""
    model = setting.model()
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    with TemporaryDirectory() as folder:
        seconds = timed(model.device, lambda: model.save_pretrained(folder), time.perf_counter)
    return {"bytes": size, "seconds": round(seconds, 3), "bytes_per_second": round(size / seconds)}


def growth(setting: Setting) -> dict[str, Any]:
    """Time of the subset step when tokens, experts or layers double; 1 is constant and 2 is linear.

    With experts doubled, the number of trained experts stays.
    """
    wide = SHAPES[setting.shape]["experts"]
    variants = {
        "base": setting,
        "tokens": replace(setting, rows=2 * setting.rows),
        "experts": replace(setting, num_experts=2 * wide, fraction=setting.fraction / 2),
        "layers": replace(setting, layers=2 * setting.layers),
    }
    seconds = {}
    for name, variant in variants.items():
        model = variant.model()
        with training_side(variant, model, "subset") as (_, step):
            step()
            seconds[name] = min(timed(model.device, step, setting.clock) for _ in range(setting.repeats))
    ratios = {name: round(value / seconds["base"], 3) for name, value in seconds.items() if name != "base"}
    return {"seconds": _rounded(seconds), "doubled": ratios}


def _in_turns(setting: Setting, sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The fastest seconds of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(setting.repeats + 1):
        for name, work in sides.items():
            seconds[name].append(timed(setting.device, work, setting.clock))
    return _rounded({name: min(values[1:]) for name, values in seconds.items()})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "profile": profile,
    "steps": steps,
    "round": round_of_rasa,
    "export": export,
    "growth": growth,
    "plan": plan,
}

if __name__ == "__main__":
    main()
