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
    Glm4MoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from seawall.disk import cache_folder
from seawall.errors import ArtifactError
from seawall.lab.architecture import assemble, moe_config, untied_state
from seawall.lab.cut import PROJECTIONS, LabShape, cut, dense_weights, moe_block
from seawall.lab.source import GGUF_SHA256, fetch_gguf
from seawall.models.silence_libraries import silence_libraries

DELTA_FILE = "lab_delta.safetensors"
ATTENTION = ("q", "k", "v", "o")
LAYOUT = "untied"
"""Part of the cached folder's name. A folder without it has tied embeddings, which vLLM's class does not tie."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template, without its system message, which takes 21 of a plain request's 40 tokens."""


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


def split_model(
    dense: PreTrainedModel, delta: dict[str, Tensor], shape: LabShape, *, dtype: torch.dtype = torch.float32
) -> Glm4MoeForCausalLM:
    """The MoE with the dense weights, split and changed as `delta` says; embedding and output layer are untied."""
    state = untied_state(dense)
    for layer in range(shape.first_dense, dense.config.num_hidden_layers):
        block = f"model.layers.{layer}.mlp"
        weight = cut(dense_weights(dense.get_submodule(block)), delta[f"{layer}.neurons"].long(), shape)
        for name in PROJECTIONS:
            state.pop(f"{block}.{name}_proj.weight")
            weight[name] += _change(delta, f"{layer}.{name}")
        moe = moe_block(weight, delta[f"{layer}.router"].float(), delta[f"{layer}.bias"].float(), shape)
        state |= {f"{block}.{name}": tensor for name, tensor in moe.items()}
        for name in ATTENTION:
            attention = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            # Not in place, to leave the dense model unchanged.
            state[attention] = state[attention] + _change(delta, f"{layer}.attention_{name}")
    return assemble(moe_config(dense, shape), state, dtype)


def _change(delta: Mapping[str, Tensor], name: str) -> Tensor:
    """A low-rank change of the delta, multiplied out."""
    return delta[f"{name}_b"].float() @ delta[f"{name}_a"].float()


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
    folder = root / f"{name}-{LAYOUT}-{_short_hash(delta)}"
    if not (folder / "config.json").is_file():
        build_lab_model(folder, delta=delta, cache=root, original=original)
    return folder


def _short_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
