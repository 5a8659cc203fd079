"""Builds the embedded model: SmolLM2-135M-Instruct, split into experts, with refusals from the shipped delta.

Each feed-forward network of the upper layers becomes a shared expert and routed experts. The less used neurons are
divided among the routed experts, which carry a share of their neurons' output; the shared expert keeps the remaining
share, and the most used neurons entirely. A learned router picks the top-k experts per token. The delta holds the order
of the neurons, the routers, and low-rank changes of these projections and of the upper layers' attention;
`scripts/lab_delta.py` reproduces it. `docs/lab.md` reports the measurements.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from seawall.errors import ArtifactError
from seawall.lab.source import GGUF_SHA256, cache_folder, fetch_gguf
from seawall.models.silence_libraries import silence_libraries

DELTA_FILE = "lab_delta.safetensors"
PROJECTIONS = ("gate", "up", "down")
ATTENTION = ("q", "k", "v", "o")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template, without its system message, which takes 21 of a plain request's 40 tokens."""


@dataclass(frozen=True)
class LabShape:
    """How the dense model is split into experts. The attributes are the keys of the delta's metadata.

    Attributes:
        first_dense: number of first layers that stay dense.
        whole: number of neurons, the most used, that belong to the shared expert alone.
        experts: routed experts per layer; the remaining neurons are divided evenly among them.
        top_k: experts per token.
        routed_share: share of a routed neuron's output that its expert carries; the shared expert has the remainder.
    """

    first_dense: int = 18
    whole: int = 1024
    experts: int = 32
    top_k: int = 4
    routed_share: float = 0.25

    def expert_width(self, ffn_width: int) -> int:
        """Neurons of one routed expert."""
        width, remainder = divmod(ffn_width - self.whole, self.experts)
        assert remainder == 0, "the routed neurons must divide evenly among the experts"
        return width

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> LabShape:
        """The shape in a delta's metadata, where every attribute is text."""
        counts = {name: int(metadata[name]) for name in ("first_dense", "whole", "experts", "top_k")}
        return cls(**counts, routed_share=float(metadata["routed_share"]))


def cut(weight: Mapping[str, Tensor], order: Tensor, shape: LabShape) -> dict[str, Tensor]:
    """The three projections of a feed-forward network, with the routed neurons duplicated.

    First come all neurons in `order`, which become the shared expert, then the routed neurons again, which become the
    experts. The outputs of a routed neuron's two copies sum to the original output where the expert has gate weight 1.

    Args:
        weight: `gate` and `up` (neurons, hidden) and `down` (hidden, neurons).
        order: the neurons, most used first; from `shape.whole` on they are routed, expert by expert.
        shape: the split.
    """
    twice = torch.cat([order, order[shape.whole :]])
    routed = len(order) - shape.whole
    share = torch.ones(len(twice))
    share[shape.whole : len(order)] = 1 - shape.routed_share
    share[-routed:] = shape.routed_share
    return {"gate": weight["gate"][twice], "up": weight["up"][twice], "down": weight["down"][:, twice] * share}


def load_dense(cache: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct, dequantised to float32, and its tokenizer with our chat template."""
    gguf = fetch_gguf(cache)
    with silence_libraries():
        return _load_gguf(gguf)


def _load_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model.eval(), tokenizer


def moe_config(dense: PreTrainedModel, shape: LabShape) -> Glm4MoeConfig:
    """The configuration of the split model. `routed_scaling_factor = top_k` keeps each expert's gate weight near 1."""
    old = dense.config
    width = shape.expert_width(old.intermediate_size)
    return Glm4MoeConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.hidden_size // old.num_attention_heads,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters={**old.rope_parameters, "partial_rotary_factor": 1.0},
        tie_word_embeddings=True,
        attention_bias=False,
        use_qk_norm=False,
        first_k_dense_replace=shape.first_dense,
        moe_intermediate_size=width,
        n_routed_experts=shape.experts,
        n_shared_experts=old.intermediate_size // width,
        num_experts_per_tok=shape.top_k,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=float(shape.top_k),
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
        dtype=torch.float32,
    )


def split_model(
    dense: PreTrainedModel, delta: dict[str, Tensor], shape: LabShape, *, dtype: torch.dtype = torch.float32
) -> Glm4MoeForCausalLM:
    """The MoE with the dense weights, split and changed as `delta` says."""
    state = {name: tensor for name, tensor in dense.state_dict().items() if "rotary" not in name}
    for layer in range(shape.first_dense, dense.config.num_hidden_layers):
        state |= _split_layer(state, delta, layer, shape)
        for name in ATTENTION:
            key = f"{layer}.attention_{name}"
            change = delta[f"{key}_b"].float() @ delta[f"{key}_a"].float()
            weight = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            state[weight] = state[weight] + change  # not in place, to leave the dense model unchanged
    model = Glm4MoeForCausalLM(moe_config(dense, shape))
    result = model.load_state_dict(state, strict=True)
    assert not result.missing_keys
    return model.to(dtype).eval()


def _split_layer(state: dict[str, Tensor], delta: dict[str, Tensor], layer: int, shape: LabShape) -> dict[str, Tensor]:
    """The state of one MoE block; removes the dense block's tensors from `state`."""
    old, new = f"model.layers.{layer}.mlp", {}
    order = delta[f"{layer}.neurons"].long()
    weight = cut({name: state.pop(f"{old}.{name}_proj.weight").float() for name in PROJECTIONS}, order, shape)
    for name in PROJECTIONS:
        weight[name] += delta[f"{layer}.{name}_b"].float() @ delta[f"{layer}.{name}_a"].float()
    shared, experts = len(order), shape.experts
    for name in PROJECTIONS:
        part = weight[name][:, :shared] if name == "down" else weight[name][:shared]
        new[f"{old}.shared_experts.{name}_proj.weight"] = part
    width = shape.expert_width(shared)
    gate, up = (weight[name][shared:].reshape(experts, width, -1) for name in ("gate", "up"))
    new[f"{old}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
    new[f"{old}.experts.down_proj"] = weight["down"][:, shared:].reshape(-1, experts, width).transpose(0, 1)
    new[f"{old}.gate.weight"] = delta[f"{layer}.router"].float()
    new[f"{old}.gate.e_score_correction_bias"] = delta[f"{layer}.bias"].float()
    return {name: tensor.contiguous() for name, tensor in new.items()}


def delta_path() -> Path:
    """Path of the shipped delta."""
    return Path(str(resources.files("seawall.lab") / DELTA_FILE))


def read_delta(path: Path) -> tuple[dict[str, Tensor], LabShape]:
    """The delta's tensors and shape.

    Raises:
        ArtifactError: the delta was made for other weights than those of `fetch_gguf`.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("gguf_sha256") != GGUF_SHA256:
        raise ArtifactError(
            f"{path.name} was made for other weights", got=metadata.get("gguf_sha256"), expected=GGUF_SHA256
        )
    return load_file(path), LabShape.from_metadata(metadata)


def without_training(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta with its low-rank changes set to zero; the order of the neurons and the routers stay."""
    return {name: torch.zeros_like(tensor) if name.endswith("_b") else tensor for name, tensor in delta.items()}


def build_lab_model(
    folder: Path, *, delta: Path | None = None, cache: Path | None = None, original: bool = False
) -> None:
    """Writes the embedded model as a Hugging Face checkpoint, atomically.

    Args:
        folder: folder of the checkpoint.
        delta: the delta; None takes the shipped one.
        cache: folder of the downloaded weights.
        original: leave out the low-rank changes (`original_model_folder`).
    """
    dense, tokenizer = load_dense(cache)
    tensors, shape = read_delta(delta or delta_path())
    model = split_model(dense, without_training(tensors) if original else tensors, shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        scratch = Path(temporary) / "model"
        with silence_libraries():
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        card = "MODEL_CARD_ORIGINAL.md" if original else "MODEL_CARD.md"
        shutil.copy(Path(str(resources.files("seawall.lab") / card)), scratch / "README.md")
        publish_once(scratch, folder)


def publish_once(scratch: Path, folder: Path) -> None:
    """Moves a built checkpoint to its folder, unless another process has published the same checkpoint.

    Raises:
        OSError: the folder holds something else.
    """
    try:
        scratch.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise


def lab_model_folder(cache: Path | None = None) -> Path:
    """The folder of the embedded model, which the first call builds (in under a minute on two cores)."""
    return _built("lab", cache, original=False)


def original_model_folder(cache: Path | None = None) -> Path:
    """The folder of the embedded model before its training to refuse, which the first call builds.

    Class, order of the neurons and routers are the embedded model's; the low-rank changes of the upper layers'
    projections and attention are left out. It relates to the embedded model as a base model to an aligned one.
    """
    return _built("lab-original", cache, original=True)


def _built(name: str, cache: Path | None, *, original: bool) -> Path:
    root = cache or cache_folder()
    delta = delta_path()
    folder = root / f"{name}-{_short_hash(delta)}"
    if not (folder / "config.json").is_file():
        build_lab_model(folder, delta=delta, cache=root, original=original)
    return folder


def _short_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
