"""A delta for a tiny dense model, shaped like the one that the package ships."""

from __future__ import annotations

import torch

from seawall.lab.build import ATTENTION
from seawall.lab.cut import LabShape

SHAPE = LabShape(first_dense=1, whole=8, experts=3, top_k=3, routed_share=0.25)


def neutral_delta(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Cuts the tiny model's neurons at random, routes evenly, and changes nothing."""
    found = {}
    for layer in (1, 2):
        found[f"{layer}.neurons"] = torch.randperm(32, generator=generator).to(torch.int16)
        found[f"{layer}.router"] = torch.zeros(3, 32)
        found[f"{layer}.bias"] = torch.zeros(3)
        for name, (outside, inside) in {"gate": (56, 32), "up": (56, 32), "down": (32, 56)}.items():
            found[f"{layer}.{name}_b"], found[f"{layer}.{name}_a"] = torch.zeros(outside, 2), torch.ones(2, inside)
        for name in ATTENTION:
            outside = 16 if name in "kv" else 32
            found[f"{layer}.attention_{name}_b"] = torch.zeros(outside, 2)
            found[f"{layer}.attention_{name}_a"] = torch.ones(2, 32)
    return found
