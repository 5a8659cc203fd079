"""The AsFT penalty in factored form against forming (I - C) B A, forward and backward, and the anchor's size.

    python benchmarks/asft.py [--width 4096 --layers 32 --lora-rank 8] [--rank 64] [--dense-matrices 1] [--json]
    python benchmarks/asft.py --share-of-step [--experts] [--batch 4 --length 64] [--json]

The shapes are Llama-2-7B's: q_proj and v_proj of 32 layers, 4096 x 4096, LoRA of rank 8. Both sides run in this process
on the same random factors, in turns. Dense is what the authors' code does in every step, with C kept as a matrix: B A
formed, (I - C) B A formed, its squared norm, and the gradients. C itself is formed once and not counted. Where a dense
matrix takes long, `--dense-matrices` runs a few and the time is multiplied by the number of matrices; the factored side
always runs all. `--extract` measures how long the directions of one such matrix take, which happens once.

`--share-of-step` measures something else and it alone: what part of a training step of plain LoRA on the embedded model
(forward, backward, AdamW; q_proj and v_proj, or with `--experts` all stacked experts) the penalty and the routing drift
of four short prompts would add, each as its own forward and backward pass. They run in turns; the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from common import synchronize
from torch import Tensor

from seawall.artifacts.anchor import Anchor, AnchorMatrix, TokenizerFacts
from seawall.methods.tune.penalty import Projection, low_rank_penalty
from seawall.methods.tune.spectrum import leading_directions

LLAMA_2_7B_PARAMETERS = 6_738_415_616
CHECKPOINT_BYTES_PER_PARAMETER = 2  # published in float16
LINEARS = ("q_proj", "v_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
Value = TypeVar("Value")


def main() -> None:
    options = _options()
    result = _share_of_step(options) if options.share_of_step else _against_dense(options)
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def _against_dense(options: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    names = [f"layers.{layer}.{side}_proj" for layer in range(options.layers) for side in "qv"]
    # Random directions in place of singular vectors: the penalty's cost does not depend on them.
    basis = torch.linalg.qr(torch.randn(options.width, options.rank, device=device)).Q
    projections = [Projection(basis.clone(), torch.ones(options.rank, device=device)) for _ in names]
    factors = [_factors(options, device) for _ in names]
    few = range(min(options.dense_matrices, len(names)))
    dense = [torch.eye(options.width, device=device) - projections[at].basis @ projections[at].basis.mT for at in few]

    sides: dict[str, Callable[[], list[float]]] = {
        "factored": lambda: [
            _step(low_rank_penalty, one, pair) for one, pair in zip(projections, factors, strict=True)
        ],
        "dense": lambda: [_step(_formed, outside, factors[at]) for at, outside in enumerate(dense)],
    }
    seconds, values = _in_turns(sides, options.repeats, device)
    result = _result(options, seconds, values, _anchor_bytes(options, names, basis))
    if options.extract:
        result["seconds_to_extract_one_matrix"] = round(_extraction(options, device), 3)
    return result


def _in_turns(
    sides: Mapping[str, Callable[[], Value]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Value]]:
    """Seconds of every turn of every side, and what its last turn gave."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    values: dict[str, Value] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            synchronize(device)
            start = time.perf_counter()
            values[side] = run()
            synchronize(device)
            seconds[side].append(time.perf_counter() - start)
    return seconds, values


def _share_of_step(options: argparse.Namespace) -> dict[str, object]:
    """What penalty and routing drift take of a LoRA step on the embedded model."""
    from peft import LoraConfig, get_peft_model

    from seawall.config.anchor import AnchorConfig
    from seawall.config.model import ModelConfig
    from seawall.methods.tune.anchor import extract_anchor
    from seawall.methods.tune.basin import SafetyBasin
    from seawall.methods.tune.drift import divergence, routing
    from seawall.models.moe.find import find_moe
    from seawall.shell.model import open_checkpoint, open_model

    aligned = ModelConfig(device=options.device)
    targets = EXPERTS if options.experts else LINEARS
    base = aligned.model_copy(update={"id": "lab-original"})
    # Most directions of the narrow experts' gate_up_proj would span the whole output at rank 64.
    energy = 0.9 if options.experts else None
    anchor = extract_anchor(AnchorConfig(aligned=aligned, base=base, targets=targets, rank=options.rank, energy=energy))
    torch.manual_seed(options.seed)
    named = (
        {"target_modules": [], "target_parameters": list(targets)} if options.experts else {"target_modules": targets}
    )
    lora = LoraConfig(r=options.lora_rank, lora_alpha=32, init_lora_weights=False, **named)
    model = get_peft_model(open_model(open_checkpoint(aligned)).model, lora).train()
    optimizer = torch.optim.AdamW(one for one in model.parameters() if one.requires_grad)
    tokens_BT = torch.randint(3, 49_000, (options.batch, options.length), device=model.device)
    moe = find_moe(model.get_base_model())
    prompts = tokens_BT[:4, :16].tolist()
    with torch.no_grad():
        start = routing(moe, prompts)
    penalty = SafetyBasin(anchor).penalty(model)

    def step() -> None:
        torch.autograd.backward(model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()

    sides: dict[str, Callable[[], None]] = {
        "step": step,
        "penalty": lambda: torch.autograd.backward(penalty()),
        "routing_drift": lambda: torch.autograd.backward(divergence(start, routing(moe, prompts))),
    }
    step()  # the first one allocates AdamW's moments
    seconds, _ = _in_turns(sides, options.repeats, model.device)
    fastest = {side: min(times) for side, times in seconds.items()}
    return {
        "device": options.device,
        "matrices": sum(one.norm.numel() for one in anchor.matrices.values()),
        "tokens": f"{options.batch} x {options.length}",
        "seconds": {side: round(value, 4) for side, value in fastest.items()},
        **{f"{side}_share_of_step": round(fastest[side] / fastest["step"], 4) for side in ("penalty", "routing_drift")},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32, help="each has a q_proj and a v_proj")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64, help="directions of the anchor; 64 is its default")
    parser.add_argument("--dense-matrices", type=int, default=1, help="how many run densely")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the fastest counts")
    parser.add_argument("--extract", action="store_true", help="time the decomposition of one matrix too")
    parser.add_argument(
        "--share-of-step", action="store_true", help="measure a LoRA step on the embedded model instead"
    )
    parser.add_argument("--experts", action="store_true", help="there: LoRA on all stacked experts")
    parser.add_argument("--batch", type=int, default=4, help="there: rows of a step")
    parser.add_argument("--length", type=int, default=64, help="there: tokens of a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _factors(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    B = torch.randn(options.width, options.lora_rank, device=device) * 0.01
    A = torch.randn(options.lora_rank, options.width, device=device) * 0.01
    return B.requires_grad_(), A.requires_grad_()


def _formed(outside: Tensor, B: Tensor, A: Tensor) -> Tensor:
    return (outside @ (B @ A)).square().sum()


def _step(penalty: Callable[..., Tensor], what: Projection | Tensor, factors: tuple[Tensor, Tensor]) -> float:
    """One matrix's value, forward and backward."""
    value = penalty(what, *factors)
    torch.autograd.backward(value)
    for one in factors:
        one.grad = None
    return float(value.detach())


def _anchor_bytes(options: argparse.Namespace, names: Sequence[str], basis: Tensor) -> int:
    """What `Anchor.save` writes for these matrices, but for the header of the file and the JSON."""
    values = torch.linspace(2.0, 1.0, options.rank)
    one = AnchorMatrix(basis, values, torch.tensor(10.0), columns=options.width, transposed=False)
    facts = TokenizerFacts("", "", options.width, options.width)
    return Anchor("", "", facts, dict.fromkeys(names, one)).bytes


def _extraction(options: argparse.Namespace, device: torch.device) -> float:
    matrix = torch.randn(options.width, options.width, device=device)
    synchronize(device)
    start = time.perf_counter()
    leading_directions(matrix, rank=options.rank, energy=None, generator=torch.Generator(device).manual_seed(0))
    synchronize(device)
    return time.perf_counter() - start


def _result(
    options: argparse.Namespace, seconds: dict[str, list[float]], values: dict[str, list[float]], anchor: int
) -> dict[str, object]:
    matrices, few = len(values["factored"]), len(values["dense"])
    fastest = {side: min(times) for side, times in seconds.items()}
    pairs = zip(values["factored"], values["dense"], strict=False)
    checkpoint = LLAMA_2_7B_PARAMETERS * CHECKPOINT_BYTES_PER_PARAMETER
    return {
        "device": options.device,
        "matrices": matrices,
        "shape": f"{options.width} x {options.width}, LoRA rank {options.lora_rank}, {options.rank} directions",
        "seconds": {side: round(value, 4) for side, value in fastest.items()},
        "dense_matrices_run": few,
        "dense_seconds_for_all": round(fastest["dense"] / few * matrices, 2),
        "time_ratio": round(fastest["dense"] / few * matrices / fastest["factored"], 1),
        "largest_relative_difference": max(abs(ours - theirs) / theirs for ours, theirs in pairs),
        "anchor_bytes": anchor,
        "anchor_share_of_checkpoint": round(anchor / checkpoint, 5),
    }


if __name__ == "__main__":
    main()
