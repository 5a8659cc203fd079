"""Refusal directions by `seawall steer` and by two tools for abliteration: time, memory, agreement layer by layer.

    python benchmarks/peers.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --heretic HERETIC_ENV/bin/python \
        [--abliterix ABLITERIX_ENV/bin/python] [--prompts 32] [--repeats 3] [--json]

Each side runs in a process of its own, in turns, on the same prompts with the same system message, in float32; each
tool has an environment of its own (pip install heretic-llm; pip install abliterix). No weight is changed. seawall
leaves out prompts whose refusal score has the wrong sign; the peers use all. So the agreement is given twice: of the
means over seawall's prompts, and of the direction that heretic takes by default (all prompts, made orthogonal to the
harmless mean).

Seconds are the process's processor time: on a machine that does other work too, the clock on the wall says little.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

SYSTEM = "You are a helpful assistant."
SIDES = ("harmful", "harmless")
OPENING = "I'm sorry"
"""Its first token is the refusal token."""


def measure_seawall(job: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """Directions (N, D) at the input of every layer, which prompts count, and seconds without loading."""
    from seawall.config import load_recipe
    from seawall.data.types import Message
    from seawall.methods.steer.extract import extract
    from seawall.methods.steer.target import TargetModel, encode_prompts
    from seawall.models.moe.find import find_moe_if_any
    from seawall.shell.model import open_checkpoint

    changes = [f"model.id={json.dumps(job['model'])}", "model.dtype=float32", "model.experts_implementation=null"]
    model, tokenizer = open_checkpoint(load_recipe(None, changes).model).load()
    opening = tokenizer.encode(OPENING, add_special_tokens=False)[:1]
    target = TargetModel(model, find_moe_if_any(model), "", tuple(opening), job["batch"])
    start = time.process_time()
    harmful, harmless = (
        encode_prompts(tokenizer, [(Message("system", SYSTEM), Message("user", text)) for text in job[side]])
        for side in SIDES
    )
    directions = extract(target, harmful, harmless, positions=(-1,), experts=False)
    seconds = time.process_time() - start
    counted = torch.tensor([prompt.used for prompt in directions.prompts])
    return {"directions_ND": directions.layer_NPD[:, 0].contiguous(), "counted": counted}, seconds


def measure_heretic(job: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """Hidden states (B, N + 1, D) at the last token of each prompt by heretic, and seconds without loading."""
    _command_line(job, {"model": job["model"], "batch-size": job["batch"], "dtypes": '["float32"]', "seed": 0})
    settings = importlib.import_module("heretic.config").Settings()
    torch.set_grad_enabled(False)
    model = importlib.import_module("heretic.model").Model(settings)
    prompt = importlib.import_module("heretic.utils").Prompt
    start = time.process_time()
    states = {
        side: model.get_residuals_batched([prompt(system=SYSTEM, user=text) for text in job[side]]) for side in SIDES
    }
    return states, time.process_time() - start


def measure_abliterix(job: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """The same by abliterix."""
    words = {"model.model-id": job["model"], "inference.batch-size": job["batch"], "seed": 0}
    _command_line(job, {**words, "model.dtype-fallback-order": '["float32"]'})
    config = importlib.import_module("abliterix.settings").AbliterixConfig()
    torch.set_grad_enabled(False)
    engine = importlib.import_module("abliterix.core.engine").SteeringEngine(config)
    message = importlib.import_module("abliterix.types").ChatMessage
    start = time.process_time()
    states = {
        side: engine.extract_hidden_states_batched([message(system=SYSTEM, user=text) for text in job[side]])
        for side in SIDES
    }
    return states, time.process_time() - start


MEASURES = {"seawall": measure_seawall, "heretic": measure_heretic, "abliterix": measure_abliterix}


def _command_line(job: dict[str, Any], options: dict[str, Any]) -> None:
    """Sets this process's command line, from which the peers read their settings."""
    sys.argv = [job["side"], *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def work(job_file: Path) -> None:
    """One side in this process: writes its tensors, and prints processor time and memory as the last line."""
    job = json.loads(job_file.read_text("utf-8"))
    tensors, seconds = MEASURES[job["side"]](job)
    total = time.process_time()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, job["output"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"directions": seconds, "all": total, "bytes": peak}))


def run_side(side: str, python: str, job: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Runs one side in a process of its own; returns its tensors and figures."""
    output, job_file = folder / f"{side}.safetensors", folder / f"{side}.json"
    job_file.write_text(json.dumps({**job, "side": side, "output": str(output)}), "utf-8")
    words = [python, str(Path(__file__).resolve()), "--work", str(job_file)]
    lines = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    return load_file(output), json.loads(lines.splitlines()[-1])


def agreement(seawall: dict[str, Tensor], peer: dict[str, Tensor]) -> dict[str, list[float]]:
    """Cosines per layer: with the peer's means over seawall's prompts, and with heretic's default direction."""
    split = len(peer["harmful"])
    counted = {"harmful": seawall["counted"][:split], "harmless": seawall["counted"][split:]}
    all_means, means = (
        {side: (peer[side][counted[side]] if only else peer[side]).mean(0) for side in SIDES} for only in (False, True)
    )
    ours_ND = seawall["directions_ND"]
    same_ND = (means["harmful"] - means["harmless"])[: len(ours_ND)]
    raw_ND = normalize(all_means["harmful"] - all_means["harmless"], dim=-1)
    harmless_ND = normalize(all_means["harmless"], dim=-1)
    default_ND = (raw_ND - (raw_ND * harmless_ND).sum(-1, keepdim=True) * harmless_ND)[: len(ours_ND)]
    return {
        "means over the same prompts": _cosines(ours_ND, same_ND),
        "heretic's default direction": _cosines(ours_ND, default_ND),
    }


def _cosines(left_ND: Tensor, right_ND: Tensor) -> list[float]:
    """Cosines of the layers whose direction is not 0: at the first layer the template's own tokens do not differ."""
    layers = left_ND.norm(dim=-1) > 0
    return [round(float(cosine), 5) for cosine in cosine_similarity(left_ND[layers], right_ND[layers], dim=-1)]


def load_job(model: str, prompts: int, batch: int) -> dict[str, Any]:
    """Training prompts of both sides from the built-in sources."""
    from seawall.config import load_recipe
    from seawall.data.sets import load_prompts

    data = load_prompts(load_recipe(None, []).data.model_copy(update={"train_goals": None}))
    texts = {
        "harmful": [goal.text for goal in data.goals.part("train")],
        "harmless": [request.text for request in data.benign.part("train")],
    }
    return {"model": model, "batch": batch, **{side: texts[side][:prompts] for side in SIDES}}


def main() -> None:
    options = _options()
    if options.work is not None:
        work(options.work)
        return
    pythons = {"seawall": sys.executable, "heretic": options.heretic, "abliterix": options.abliterix}
    pythons = {side: python for side, python in pythons.items() if python}
    job = load_job(options.model, options.prompts, options.batch)
    tensors: dict[str, dict[str, Tensor]] = {}
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in pythons}
    with TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for side, python in pythons.items():
                tensors[side], measured = run_side(side, python, job, Path(folder))
                figures[side].append(measured)
    result = {
        "model": options.name or options.model,
        "prompts": {side: len(job[side]) for side in SIDES},
        "counted by seawall": int(tensors["seawall"]["counted"].sum()),
        "sides": {side: _summary(rows) for side, rows in figures.items()},
        "cosines": {side: agreement(tensors["seawall"], tensors[side]) for side in pythons if side != "seawall"},
    }
    print(json.dumps(result) if options.json else _text(result))


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Fastest and median seconds of the directions, median seconds of the process, largest memory."""
    seconds = [row["directions"] for row in rows]
    return {
        "fastest": round(min(seconds), 2),
        "median": round(statistics.median(seconds), 2),
        "process": round(statistics.median(row["all"] for row in rows), 2),
        "peak GB": round(max(row["bytes"] for row in rows) / 1e9, 2),
    }


def _text(result: dict[str, Any]) -> str:
    lines = [f"{key}: {result[key]}" for key in ("model", "prompts", "counted by seawall")]
    lines += [f"{side}: {figures}" for side, figures in result["sides"].items()]
    for side, kinds in result["cosines"].items():
        for kind, values in kinds.items():
            lines.append(f"cosine of seawall and {side}, {kind}: median {statistics.median(values)}, all {values}")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab", help="a folder or a Hub id; `lab` for seawall alone")
    parser.add_argument("--name", help="the model's name in the output, where --model is a folder")
    parser.add_argument("--heretic", help="the Python of heretic's environment")
    parser.add_argument("--abliterix", help="the Python of abliterix's environment")
    parser.add_argument("--prompts", type=int, default=32, help="of each side")
    parser.add_argument("--batch", type=int, default=16, help="prompts of a forward pass")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
