"""A dense model's cut into experts: its shape, checked, and the model, fitted to a calibration sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import Glm4MoeForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from seawall.errors import ConfigError
from seawall.lab.architecture import assemble, moe_config, untied_state
from seawall.lab.calibrate import calibration_prompts, mlp_inputs, own_conversations
from seawall.lab.cut import ALIGNMENT, PROJECTIONS, LabShape, dense_weights, moe_block
from seawall.lab.fit import fit_cut

Say = Callable[[str], None]
_ROUTED_PART = 4


@dataclass(frozen=True)
class Calibration:
    """The calibration sample of a cut."""

    conversations: int
    tokens: int
    seed: int


def checked_shape(
    config: PreTrainedConfig,
    *,
    experts: int,
    top_k: int,
    routed_share: float,
    first_dense: int | None = None,
    shared_neurons: int | None = None,
) -> LabShape:
    """The shape of a cut of a model.

    Args:
        config: of the dense model.
        experts: routed experts per layer.
        top_k: experts per token.
        routed_share: share of a routed neuron's output that its expert carries.
        first_dense: first layers that stay dense; None: half.
        shared_neurons: neurons that belong to the shared expert alone (`--whole`); None: about three quarters, such
            that experts need no padding where possible.

    Raises:
        ConfigError: a number is out of its range, or the routed neurons do not divide evenly.
    """
    layers, neurons = config.num_hidden_layers, config.intermediate_size
    first = layers // 2 if first_dense is None else first_dense
    _require_range("--first-dense", first, 0, layers - 1)
    _require_range("--experts", experts, 2, neurons)
    _require_range("--top-k", top_k, 1, experts)
    _require_range("--routed-share", routed_share, 0.0, 1.0)
    alone = _whole(neurons, experts) if shared_neurons is None else shared_neurons
    _require_range("--whole", alone, 0, neurons - experts)
    if (neurons - alone) % experts:
        raise ConfigError(
            f"the neurons that are not kept whole must divide evenly among the experts ({neurons} in a layer)",
            got=f"{neurons} - {alone} = {neurons - alone} neurons for {experts} experts",
            remedy=f"set --whole {_whole(neurons, experts)}, or leave it out",
        )
    return LabShape(first_dense=first, whole=alone, experts=experts, top_k=top_k, routed_share=routed_share)


def _whole(neurons: int, experts: int) -> int:
    """Neurons kept whole by default: the experts share about a quarter."""
    width = max(1, neurons // (_ROUTED_PART * experts))
    aligned = round(width / ALIGNMENT) * ALIGNMENT
    return neurons - experts * (aligned if 0 < aligned * experts <= neurons else width)


def _require_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{option} is out of range for this model", got=value, expected=f"{low} to {high}")


def cut_model(
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shape: LabShape,
    *,
    tokens: int,
    seed: int,
    dtype: torch.dtype,
    say: Say,
) -> tuple[Glm4MoeForCausalLM, Calibration]:
    """The cut model, with the dense model's generation settings; nothing is trained.

    Args:
        dense: a model that `seawall.lab.architecture.require_fit` accepts, in float32; left unchanged.
        tokenizer: its tokenizer, with a chat template.
        shape: the cut.
        tokens: number of calibration tokens.
        seed: of the order of calibration prompts, and of the clustering.
        dtype: type of the cut model's weights.
        say: gets a line on every step.
    """
    conversations = own_conversations(
        dense,
        tokenizer,
        calibration_prompts(seed),
        tokens=tokens,
        progress=lambda count: say(f"calibration: {count} of {tokens} tokens"),
    )
    inputs = mlp_inputs(dense, conversations, shape.first_dense)
    generator = torch.Generator().manual_seed(seed)
    state = untied_state(dense)
    for layer in range(shape.first_dense, dense.config.num_hidden_layers):
        block = f"model.layers.{layer}.mlp"
        weight = dense_weights(dense.get_submodule(block))
        fit = fit_cut(weight, inputs.pop(layer).to(weight["down"].device), shape, generator)
        for name in PROJECTIONS:
            del state[f"{block}.{name}_proj.weight"]
        moe = moe_block(fit.weight, fit.router, fit.bias, shape)
        state |= {f"{block}.{name}": tensor for name, tensor in moe.items()}
        say(f"layer {layer}: {shape.experts} experts of {shape.expert_width(len(fit.order))} neurons")
    model = assemble(moe_config(dense, shape), state, dtype)
    model.generation_config = dense.generation_config
    return model, Calibration(len(conversations), sum(map(len, conversations)), seed)
