"""Facts about a model, found without loading a weight: the source of `seawall doctor` and `seawall plan`.

The configuration gives the model on the meta device (shapes only); the safetensors headers give types and sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.data.rendering import check_chat_template
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models.files.accounted import require_accounted, require_float_weights
from seawall.models.files.checkpoint import TensorHeader, read_config, read_headers
from seawall.models.files.hub import hub_headers, locate
from seawall.models.files.load import library_errors, load_architecture, open_tokenizer, require_plain_weights
from seawall.models.moe.find import MoELayer, MoEModel, find_moe_if_any
from seawall.models.moe.module_copies import attention_modules, beside_routed, modules_beside_experts
from seawall.models.silence_libraries import silence_libraries
from seawall.models.sizes import largest, sizes

T = TypeVar("T")

EXPERT_VERBS = ("run", "profile", "select", "repair", "audit")
MODEL_VERBS = ("eval", "steer", "tune", "gene", "landscape")
_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class MoESummary:
    """The routed experts of a model.

    Attributes:
        layers: L, decoder layers with routed experts.
        first_layer: the first of them among all decoder layers, from 0.
        experts: E, routed experts per layer.
        top_k: K, routed experts per token.
        shared_experts: size of the network that every token passes through, in units of one routed expert.
        expert_tensors: stacked tensors of one layer, by name, with their shapes.
        expert_parameters: parameters of one routed expert of one layer.
        shared_parameters: parameters of the shared experts of one layer.
        router_parameters: parameters of all routers.
        attention_parameters: parameters of the attention of one of these layers; 0 where it cannot be identified.
        beside_parameters: parameters beside the routed experts of all layers: shared experts, and gates before them.
        beside_layers: how many of the L layers have such parameters.
    """

    layers: int
    first_layer: int
    experts: int
    top_k: int
    shared_experts: int
    expert_tensors: tuple[tuple[str, tuple[int, ...]], ...]
    expert_parameters: int
    shared_parameters: int
    router_parameters: int
    attention_parameters: int = 0
    beside_parameters: int = 0
    beside_layers: int = 0

    @property
    def idle_parameters(self) -> int:
        """Parameters that one token does not use: those of the experts that the router did not choose for it."""
        return self.layers * (self.experts - self.top_k) * self.expert_parameters


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model as `doctor` shows it. Unknown numbers are 0, unknown names are empty.

    Attributes:
        id: folder or Hub id, as given.
        architecture: class in transformers.
        family: transformers' model_type.
        parameters: all parameters, tied ones once.
        active_parameters: parameters that one token uses: all but the experts not chosen for it, embeddings included.
        decoder_layers: number of decoder layers, dense ones included.
        width: D.
        vocabulary: V.
        cache_elements: numbers in the key-value cache per token and decoder layer.
        moe: the routed experts; None for a dense model, and where seawall cannot reach any.
        dtype: type of most of the weights on disk.
        bytes_on_disk: size of the weights.
        tokenizer: whether the model has a tokenizer.
        chat_template: whether the tokenizer has a chat template.
        refusals: reasons why seawall cannot work on the model; empty where it can.
    """

    id: str
    architecture: str
    family: str
    parameters: int
    active_parameters: int
    decoder_layers: int
    width: int
    vocabulary: int
    cache_elements: int
    moe: MoESummary | None
    dtype: str
    bytes_on_disk: int
    tokenizer: bool
    chat_template: bool
    refusals: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether seawall can work on the model; on a dense one with fewer verbs."""
        return not self.refusals

    @property
    def verbs(self) -> dict[str, bool]:
        """Which verbs work on the model: those that need experts, and those that take dense models too."""
        experts = self.supported and self.moe is not None
        return dict.fromkeys(EXPERT_VERBS, experts) | dict.fromkeys(MODEL_VERBS, self.supported)

    @property
    def verdict(self) -> str:
        """`supported`, what a dense model leaves out, or `refused: ` followed by every reason."""
        if not self.supported:
            return f"refused: {' | '.join(self.refusals)}"
        if self.moe is None:
            return f"{', '.join(MODEL_VERBS)}: yes; {', '.join(EXPERT_VERBS)}: no (a dense model has no experts)"
        return "supported"


def inspect_model(config: ModelConfig) -> ModelSummary:
    """Summarises a model. Every problem becomes a refusal in the summary, so that all are reported at once.

    Raises:
        ConfigError: the model does not exist.
        UnsupportedModelError: the folder has no config.json.
        ArtifactError: config.json is damaged.
    """
    folder = locate(config, weights=False)
    raw = read_config(folder)
    return _summary(config, raw, _collect_facts(folder, raw, config))


def meta_model(architecture: PreTrainedConfig, config: ModelConfig) -> PreTrainedModel:
    """The model on the meta device: shapes without values. Takes milliseconds per layer and no memory.

    Raises:
        UnsupportedModelError: transformers cannot build the model from this configuration.
    """
    with library_errors("the model cannot be built from its config.json"), silence_libraries(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, trust_remote_code=config.trust_remote_code)


@dataclass(slots=True)
class _Facts:
    """The facts about a model, and the reasons for refusing it."""

    architecture: PreTrainedConfig | None = None
    headers: Mapping[str, TensorHeader] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    chat_template: bool = False
    model: PreTrainedModel | None = None
    moe: MoEModel | None = None
    refusals: list[str] = field(default_factory=list)

    def collect(self, find: Callable[[], T], default: T) -> T:
        """The result of `find`; where it raises a SeawallError, the default, and the error becomes a refusal."""
        try:
            return find()
        except SeawallError as error:
            self.refusals.append(str(error))
            return default


def _collect_facts(folder: Path, raw: Mapping[str, Any], config: ModelConfig) -> _Facts:
    facts = _Facts()
    facts.architecture = facts.collect(lambda: load_architecture(folder, config), None)
    if not config.dequantize:
        facts.collect(lambda: require_plain_weights(folder, raw), None)
    facts.headers = facts.collect(lambda: _headers(folder, config), {})
    facts.tokenizer = facts.collect(lambda: open_tokenizer(folder, config), None)
    if facts.tokenizer is not None:
        facts.chat_template = bool(facts.tokenizer.chat_template)
        facts.collect(lambda: check_chat_template(facts.tokenizer), None)
    if facts.architecture is not None:
        facts.model = facts.collect(lambda: meta_model(facts.architecture, config), None)
    if not config.dequantize:
        facts.collect(lambda: require_float_weights(folder, facts.headers), None)
    if facts.model is not None:
        if not facts.refusals and not config.dequantize:
            facts.collect(lambda: require_accounted(folder, facts.model, facts.headers), None)
        facts.moe = facts.collect(lambda: find_moe_if_any(facts.model), None)
    return facts


def _headers(folder: Path, config: ModelConfig) -> Mapping[str, TensorHeader]:
    return read_headers(folder) if Path(config.id).expanduser().is_dir() else hub_headers(config)


def _summary(config: ModelConfig, raw: Mapping[str, Any], facts: _Facts) -> ModelSummary:
    moe = None if facts.moe is None else summarize_moe(facts.moe)
    text = None if facts.architecture is None else facts.architecture.get_text_config()
    parameters = _parameters(facts)
    return ModelSummary(
        id=config.id,
        architecture=type(facts.model).__name__ if facts.model is not None else "",
        family=str(raw.get("model_type", "")),
        parameters=parameters,
        active_parameters=parameters - (0 if moe is None else moe.idle_parameters),
        decoder_layers=largest(text, "num_hidden_layers"),
        width=largest(text, "hidden_size"),
        vocabulary=largest(text, "vocab_size"),
        cache_elements=_cache_elements(text),
        moe=moe,
        dtype=_main_dtype(facts.headers) or str(raw.get("dtype") or raw.get("torch_dtype") or ""),
        bytes_on_disk=sum(header.bytes for header in facts.headers.values()),
        tokenizer=facts.tokenizer is not None,
        chat_template=facts.chat_template,
        refusals=tuple(facts.refusals),
    )


def _parameters(facts: _Facts) -> int:
    """Number of parameters, tied ones once; that of the files where the model could not be built."""
    if facts.model is None:
        return sum(header.elements for header in facts.headers.values())
    return sum(parameter.numel() for parameter in facts.model.parameters())


def summarize_moe(moe: MoEModel) -> MoESummary:
    """Sizes of a model's routed experts."""
    first = moe.layers[0]
    tensors = tuple((weight, tuple(first.parameter(weight).shape)) for weight in first.weights)
    expert = sum(first.parameter(weight).numel() for weight in first.weights) // first.num_experts
    shared = _shared_parameters(moe, first)
    return MoESummary(
        layers=moe.num_layers,
        first_layer=first.decoder_layer,
        experts=moe.num_experts,
        top_k=moe.top_k,
        shared_experts=max(1, round(shared / expert)) if shared else 0,
        expert_tensors=tensors,
        expert_parameters=expert,
        shared_parameters=shared,
        router_parameters=sum(value.numel() for layer in moe.layers for value in layer.router.parameters()),
        attention_parameters=_attention_parameters(moe, first.decoder_layer),
        beside_parameters=sum(
            value.numel() for module in modules_beside_experts(moe).values() for value in module.parameters()
        ),
        beside_layers=sum(bool(beside_routed(moe, layer)) for layer in moe.layers),
    )


def _attention_parameters(moe: MoEModel, layer: int) -> int:
    try:
        modules = attention_modules(moe, {layer})
    except UnsupportedModelError:
        return 0
    return sum(value.numel() for module in modules.values() for value in module.parameters())


def _shared_parameters(moe: MoEModel, layer: MoELayer) -> int:
    """Parameters of the shared experts; a gate in front of one, a single row, does not count."""
    weights = [value for module in beside_routed(moe, layer).values() for value in module.parameters()]
    return sum(value.numel() for value in weights if value.ndim > 2 or min(value.shape) > 1)


def _cache_elements(text: PreTrainedConfig | None) -> int:
    """Cached numbers per token and decoder layer: keys and values of every key-value head, or one latent vector.

    The mean over layers where they differ.
    """
    latent = largest(text, "kv_lora_rank")
    if latent:
        return latent + largest(text, "qk_rope_head_dim")
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    cached = [
        2 * (key_heads or heads) * (head or width // max(1, heads))
        for heads, key_heads, head, width in zip(*(sizes(text, name) for name in names), strict=True)
    ]
    return math.ceil(fmean(cached))


def _main_dtype(headers: Mapping[str, TensorHeader]) -> str:
    """The type of most of the stored bytes, by its name in PyTorch where known."""
    stored: Counter[str] = Counter()
    for header in headers.values():
        stored[header.dtype] += header.bytes
    commonest = stored.most_common(1)
    return _DTYPE_NAMES.get(commonest[0][0], commonest[0][0]) if commonest else ""
