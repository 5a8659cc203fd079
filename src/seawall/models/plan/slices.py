"""Rates measured on a slice of the model: one and two layers at the real shapes with random weights.

The time of a pass is a + L t, with a for embedding and output layer and t for a layer. Two slices give both; the time
of the model follows for its L layers. A small model is measured as it is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, initialization

from seawall.data.batching import Batch
from seawall.data.templating import IGNORED
from seawall.models.files.load import library_errors
from seawall.models.files.placement import DTYPES
from seawall.models.forward import run_model
from seawall.models.greedy import GreedyBatch
from seawall.models.moe.by_expert import experts_options
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import find_moe_if_any
from seawall.models.moe.module_copies import shared_experts, trainable_modules
from seawall.models.plan.rates import Rates
from seawall.models.silence_libraries import silence_libraries

Clock = Callable[[], float]
"""A clock in seconds: `time.perf_counter`, or `time.process_time` where other processes share the cores."""
WHOLE_BYTES = 2**30
"""A model with at most this many bytes of weights is measured with all its layers."""
_FILL = 1 << 20
"""Random numbers drawn; weights repeat them."""
_STEPS = 6
"""Decoding steps measured; the first warms up, and the fastest of the others counts."""
_REPEATS = 2
"""Times a pass is measured; the fastest counts."""
_BY_LAYER = ("layer_types", "mlp_layer_types")
"""Lists of the configuration with one entry per layer."""


@dataclass(frozen=True, slots=True)
class Load:
    """The batches that are measured.

    Attributes:
        rows: prompts decoded at once.
        prompt_tokens: tokens of a prompt.
        training_rows: sequences of a training pass.
        training_tokens: tokens of a sequence.
        positions: positions per sequence whose logits are computed.
        share: share of each layer's experts that trains; of a dense model the attention trains.
        shared: whether the shared experts train instead.
    """

    rows: int
    prompt_tokens: int
    training_rows: int
    training_tokens: int
    positions: int
    share: float
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one prefill, decoding step, training pass, and optimizer update, and the parameters it updates."""

    prefill: float
    step: float
    train: float
    update: float
    updated: float


def measured_rates(
    architecture: PreTrainedConfig, load: Load, *, device: torch.device, dtype: str, implementation: str | None = None
) -> Rates:
    """Rates of a model with random weights on this machine, from its configuration alone.

    Args:
        architecture: of the model.
        load: the batches.
        device: where to measure.
        dtype: of the weights, by its name in PyTorch.
        implementation: of the experts; None for transformers' choice.

    Raises:
        UnsupportedModelError: transformers cannot build the model.
        SeawallError: memory runs out.
    """
    layers = int(architecture.get_text_config().num_hidden_layers)

    def times(count: int) -> Times:
        model = random_model(architecture, count, device=device, dtype=dtype, implementation=implementation)
        return measure(model, load)

    first = _smallest_slice(architecture)
    if layers <= first + 1 or _bytes(architecture, dtype) <= WHOLE_BYTES:
        return rates_of(times(layers), load)
    return rates_of(extrapolated(times(first), times(first + 1), first, layers), load)


def extrapolated(small: Times, large: Times, first: int, layers: int) -> Times:
    """Times of `layers` layers from those of `first` and `first + 1` layers; no layer takes less than no time."""
    values = (
        fewer + (layers - first) * max(0.0, more - fewer)
        for fewer, more in zip(astuple(small), astuple(large), strict=True)
    )
    return Times(*values)


def rates_of(times: Times, load: Load) -> Rates:
    """Tokens per second of a full batch."""
    return Rates(
        generate=load.rows / times.step,
        forward=load.rows * load.prompt_tokens / times.prefill,
        train=load.training_rows * load.training_tokens / times.train,
        update=times.updated / times.update if times.update else 0.0,
    )


def random_model(
    architecture: PreTrainedConfig,
    layers: int,
    *,
    device: torch.device,
    dtype: str,
    implementation: str | None = None,
) -> PreTrainedModel:
    """The first layers of a model with random weights, in evaluation mode.

    Raises:
        UnsupportedModelError: transformers cannot build the model.
    """
    config = copy.deepcopy(architecture)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    for name, value in text.to_dict().items():
        if name in _BY_LAYER and isinstance(value, list):
            setattr(text, name, value[:layers])
    options = experts_options(implementation)
    with library_errors("the model cannot be built from its config.json"), silence_libraries(), ExitStack() as stack:
        stack.enter_context(initialization.no_init_weights())
        stack.enter_context(torch.device(device))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES.get(dtype, torch.bfloat16), **options
        )
    _fill(model)
    return model.eval()


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Fills weights with one block of small random numbers, repeated: drawing billions takes minutes on a CPU."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(_FILL, generator=generator) * 0.02
    for parameter in model.parameters():
        values = block.to(parameter.device, parameter.dtype)
        flat = parameter.view(-1)
        if parameter.ndim == 1:
            flat.fill_(1)
            continue
        for start in range(0, len(flat), _FILL):
            part = flat[start : start + _FILL]
            part.copy_(values[: len(part)])


def _smallest_slice(architecture: PreTrainedConfig) -> int:
    """Layers of the smaller slice: all leading dense layers, and one with experts."""
    dense = architecture.get_text_config().to_dict().get("first_k_dense_replace")
    return 1 + (dense if isinstance(dense, int) else 0)


def _bytes(architecture: PreTrainedConfig, dtype: str) -> int:
    with silence_libraries(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    size = int(DTYPES.get(dtype, torch.bfloat16).itemsize)
    return size * sum(int(parameter.numel()) for parameter in model.parameters())


def measure(model: PreTrainedModel, load: Load, clock: Clock = time.perf_counter) -> Times:
    """Times of a model as it is."""
    prefill, step = _decoding(model, load, clock)
    train, update, updated = _training(model, load, clock)
    return Times(prefill, step, train, update, float(updated))


@torch.no_grad()
def _decoding(model: PreTrainedModel, load: Load, clock: Clock) -> tuple[float, float]:
    prompts = [tuple(row) for row in _ids(model, load.rows, load.prompt_tokens).tolist()]
    GreedyBatch(model, prompts[:1], 0).step()  # warms up
    prefill = min(timed(model.device, GreedyBatch(model, prompts, 0).step, clock) for _ in range(_REPEATS))
    batch = GreedyBatch(model, prompts, 0)
    batch.step()
    return prefill, min([timed(model.device, batch.step, clock) for _ in range(_STEPS)][1:])


def _training(model: PreTrainedModel, load: Load, clock: Clock) -> tuple[float, float, int]:
    ids_BT = _ids(model, load.training_rows, load.training_tokens)
    batch = Batch(ids_BT, torch.ones_like(ids_BT), ids_BT)
    with ExitStack() as stack:
        parameters = _trained(model, load, stack)
        optimizer = torch.optim.AdamW(parameters)

        def backward() -> None:
            logits_BTV = run_model(model, batch, keep=load.positions)
            labels_BT = ids_BT[:, -load.positions :]
            loss = nn.functional.cross_entropy(
                logits_BTV[:, :-1].float().transpose(1, 2), labels_BT[:, 1:], ignore_index=IGNORED
            )
            torch.autograd.backward([loss])

        def update() -> None:
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        backward()
        update()  # allocates the moments
        seconds: list[tuple[float, float]] = []
        for _ in range(_REPEATS):
            optimizer.zero_grad(set_to_none=True)
            seconds.append((timed(model.device, backward, clock), timed(model.device, update, clock)))
        for parameter in parameters:
            parameter.grad = None
    train, step = (min(values) for values in zip(*seconds, strict=True))
    return train, step, sum(parameter.numel() for parameter in parameters)


def _trained(model: PreTrainedModel, load: Load, stack: ExitStack) -> list[nn.Parameter]:
    """Copies of a share of each layer's experts, or of the shared ones; in a dense model every layer's first matrix."""
    moe = find_moe_if_any(model)
    if moe is not None and load.shared:
        return list(stack.enter_context(trainable_modules(moe, shared_experts(moe))).parameters())
    if moe is not None and load.share:
        count = max(1, round(load.share * moe.num_experts))
        return list(stack.enter_context(trainable_experts(moe, [range(count)] * moe.num_layers)).parameters())
    model.requires_grad_(False)
    chosen = [parameter for name, parameter in model.named_parameters() if name.endswith("q_proj.weight")]
    chosen = chosen or [parameter for parameter in model.parameters() if parameter.ndim == 2][:1]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _ids(model: PreTrainedModel, rows: int, tokens: int) -> torch.Tensor:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(1, vocabulary, (rows, tokens), generator=generator).to(model.device)


def timed(device: torch.device, work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of some work, until the device has finished it."""
    _synchronize(device)
    start = clock()
    work()
    _synchronize(device)
    return clock() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
