"""Tokens per second, and the time of work from them."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import Work

DECODE_SHARE = 1 / 8
"""Token-by-token decoding reaches about this share of the arithmetic rate of a forward pass over whole prompts."""

FILE_RATE = 1e9
"""Assumed bytes per second of large files that are written, read or hashed: a local solid-state disk."""
PROCESS_SECONDS = 9.0
"""Assumed time of a fresh Python process until torch, transformers and seawall are imported."""
LAYER_SECONDS = 1.5e-3
"""Assumed time of one layer in a decoding step on a fast device, where starting the kernels takes longest."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of a model on a device, measured or assumed.

    Attributes:
        generate: tokens per second decoded one by one, in a full batch.
        forward: tokens per second in forward passes without a gradient.
        train: tokens per second in forward and backward passes.
        update: parameters per second that an optimizer updates; 0 where its time is part of `train` or unknown.
    """

    generate: float
    forward: float
    train: float
    update: float = 0.0


def seconds(work: Work, rates: Rates) -> float:
    """Time of work: the tokens of each kind over their rate, and the parameters of all updates over theirs."""
    updates = work.updates * work.updated / rates.update if rates.update else 0.0
    computed = work.generated / rates.generate + work.forward / rates.forward + work.trained / rates.train + updates
    return computed + fixed_seconds(work)


def fixed_seconds(work: Work) -> float:
    """The part of that time that no rate of a model decides: files are written and read, and processes start."""
    return work.files / FILE_RATE + work.processes * PROCESS_SECONDS


def rates_from_flops(shapes: ModelShapes, flops: float, *, rows: int) -> Rates:
    """Rates assumed from the machine's operations per second: 2 operations per active parameter and token.

    A backward pass costs twice the forward pass. Decoding runs at `DECODE_SHARE` of the forward rate, as measured with
    the embedded model on two cores, and a step of `rows` rows takes at least `LAYER_SECONDS` per layer. The estimate is
    good to a factor of about two; prefer a measured rate.
    """
    forward = flops / (2 * shapes.active_parameters)
    decoded = min(forward * DECODE_SHARE, rows / (shapes.layers * LAYER_SECONDS))
    return Rates(generate=decoded, forward=forward, train=forward / 3)
