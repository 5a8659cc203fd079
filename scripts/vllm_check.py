"""Serves the embedded model with a real vLLM and checks what `seawall verify` says of it. Not part of CI.

    python scripts/vllm_check.py --vllm /path/to/vllm-env/bin/vllm [--model RUN/model --other lab]

Four servers, one after the other, in float32, each compared with the local weights of --model: the model itself (must
pass, all greedy replies equal), the same without its output layer, another model, and the model with a single altered
expert (must all fail). Exit code 0 if all four verdicts are right. docs/verify.md says how to install vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file

from seawall.config.model import ModelConfig
from seawall.evaluation.served.process import vllm_server
from seawall.jobs.verify import Server, verify
from seawall.runs.progress import Quiet
from seawall.shell.model import open_checkpoint

WEIGHTS = "model.safetensors"
SECONDS = 900
LENGTH = 512
Tensors = dict[str, Any]


def copy(source: Path, target: Path, change: Callable[[Tensors], None], **settings: Any) -> Path:
    """A copy of a checkpoint with changed weights and settings."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


def without_output_layer(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


def alter_expert(layer: int, expert: int, factor: float) -> Callable[[Tensors], None]:
    """Scales the output matrix of one expert of a decoder layer."""

    def change(tensors: Tensors) -> None:
        tensors[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"] *= factor

    return change


def check(name: str, folder: Path, options: argparse.Namespace, *, prompts: int, same: bool) -> bool:
    """Serves a folder, compares it with the local model, and prints the figures; whether the verdict is right."""
    begun = time.monotonic()
    with vllm_server(options.vllm, folder, dtype="float32", length=LENGTH, seconds=SECONDS) as url:
        started = time.monotonic() - begun
        server = Server(url, seconds=SECONDS)
        result = verify(options.model, server, prompts=prompts, dtype="float32", reporter=Quiet())
    document = result.document()
    right = result.passed is same and (not same or document["equal_replies"] == prompts)
    names = (
        "passed",
        "probes",
        "tokens",
        "largest",
        "mean",
        "equal_replies",
        "experts",
        "first_difference",
        "constant",
    )
    figures = {key: document[key] for key in names}
    seconds = {"start": round(started), "total": round(time.monotonic() - begun)}
    print(json.dumps({"case": name, "right": right, **figures, "seconds": seconds}), flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default=os.environ.get("SEAWALL_VLLM", "vllm"), help="command, or its Python")
    parser.add_argument("--model", default="lab", help="the local model")
    parser.add_argument("--other", default="lab-original", help="another model of the same shape")
    parser.add_argument("--prompts", type=int, default=60, help="probes of the model itself")
    parser.add_argument("--few", type=int, default=16, help="probes of the three others")
    parser.add_argument("--expert", default="22:7:1.05", help="decoder layer, expert and factor of the altered one")
    options = parser.parse_args()
    source, other = (open_checkpoint(ModelConfig(id=name)).folder.resolve() for name in (options.model, options.other))
    layer, expert, factor = options.expert.split(":")
    with TemporaryDirectory() as scratch:
        tied = copy(source, Path(scratch, "tied"), without_output_layer, tie_word_embeddings=True)
        altered = copy(source, Path(scratch, "altered"), alter_expert(int(layer), int(expert), float(factor)))
        verdicts = [
            check("the model itself", source, options, prompts=options.prompts, same=True),
            check("without its output layer", tied, options, prompts=options.few, same=False),
            check("another model", other, options, prompts=options.few, same=False),
            check(f"one expert altered ({options.expert})", altered, options, prompts=options.few, same=False),
        ]
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
