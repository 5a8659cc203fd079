"""Loading a model and its tokenizer: everything that can be wrong is checked first and said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from seawall.config.model import ModelConfig
from seawall.data.templating import check_chat_template
from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.models.files.checkpoint import (
    TensorHeader,
    first_line,
    read_config,
    read_headers,
    read_json,
    verify_hashes,
)
from seawall.models.files.hub import locate
from seawall.models.memory import is_out_of_memory
from seawall.models.silence_libraries import silence_libraries

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_LIBRARY_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError)
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
_ONE_DEVICE_SHARE = 0.7
"""Above this share of one device's free memory the weights are spread: training and the cache need the rest."""


def load_model(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode on its device, and its tokenizer.

    Raises:
        ConfigError: no such model, dtype or device.
        UnsupportedModelError: not a causal language model that transformers knows, no tokenizer, no safetensors, or
            quantised weights.
        DataError: no chat template.
        ArtifactError: damaged or incomplete files.
    """
    folder = locate(config)
    architecture = load_architecture(folder, config)
    require_plain_weights(folder, read_config(folder))
    tokenizer = _chat_tokenizer(folder, config)
    return load_weights(folder, architecture, config), tokenizer


def load_weights(
    folder: Path, architecture: PreTrainedConfig, config: ModelConfig, *, auto: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """The model of a folder in evaluation mode on its device; `auto` is the class of transformers that chooses its.

    Raises:
        ConfigError: no such dtype or device.
        UnsupportedModelError: transformers cannot load it, or it has no safetensors.
        ArtifactError: damaged or incomplete files.
    """
    options = _placement(config.device, _bytes_in_memory(read_headers(folder), config.dtype))
    options |= {"dtype": requested_dtype(config.dtype), "trust_remote_code": config.trust_remote_code}
    if config.experts_implementation is not None:
        options["experts_implementation"] = config.experts_implementation
    verify_hashes(folder)
    return _load_weights(folder, architecture, options, auto)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone, with a chat template.

    Raises:
        ConfigError: no such model.
        UnsupportedModelError: it has no tokenizer, or one that transformers cannot use.
        DataError: no chat template.
        ArtifactError: damaged files.
    """
    return _chat_tokenizer(locate(config, weights=False), config)


def _chat_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    tokenizer = open_tokenizer(folder, config)
    check_chat_template(tokenizer)
    return tokenizer


def open_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with or without a chat template.

    Files are checked first, because transformers makes an empty tokenizer out of nothing.

    Raises:
        UnsupportedModelError: there is none, or transformers cannot use it.
        ArtifactError: damaged files.
    """
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise UnsupportedModelError(
            f"no tokenizer in {folder}",
            expected="tokenizer.json",
            remedy="copy the tokenizer's files from the original model",
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_json(folder / name)
    with library_errors(f"the tokenizer in {folder} cannot be loaded"), silence_libraries():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)


def load_architecture(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    """The model's configuration, when it is of a causal language model that can be loaded.

    Raises:
        UnsupportedModelError: it is not.
        ArtifactError: config.json is damaged.
    """
    _require_known(read_config(folder), config)
    return load_config(folder, config)


def load_config(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    """The configuration of a folder's model, whatever it is for.

    Raises:
        UnsupportedModelError: transformers cannot read it.
    """
    with library_errors(f"{folder / 'config.json'} does not fit its model"), silence_libraries():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)


def require_plain_weights(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse quantised weights, by the model's config.json.

    Raises:
        UnsupportedModelError: they are quantised.
    """
    quantized = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if quantized:
        raise UnsupportedModelError(
            f"the weights in {folder} are quantised",
            got=quantized.get("quant_method", "quantization_config"),
            expected="float32, bfloat16 or float16, in which experts can be changed",
            remedy="use the model's unquantised version, or dequantise it first",
        )


def _require_known(raw: dict[str, Any], config: ModelConfig) -> None:
    model_type = raw.get("model_type")
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "AutoModelForCausalLM" in raw.get("auto_map", {}):
        if config.trust_remote_code:
            return
        raise UnsupportedModelError(
            f"model {config.id} brings its own Python code, which is not run unless you ask for it",
            got=f"model_type {model_type}",
            remedy="read that code; if you trust its author, set model.trust_remote_code=true",
        )
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model {config.id} is not a causal language model",
            got=f"model_type {model_type}",
            expected="one that writes text",
        )
    raise UnsupportedModelError(
        f"model {config.id} is of an unknown architecture",
        got=f"model_type {model_type}",
        remedy="a newer transformers may know it",
    )


def requested_dtype(name: str) -> torch.dtype | str:
    """The type of the loaded weights: `auto` is the checkpoint's own.

    Raises:
        ConfigError: no such type.
    """
    if name == "auto":
        return name
    if name not in DTYPES:
        raise ConfigError("unknown model.dtype", got=name, expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def requested_device(name: str) -> torch.device:
    """The device that a name asks for; `auto` is Accelerate's choice for this process: cuda, then mps, then cpu.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    if name == "auto":
        device: torch.device = PartialState().device
        return device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("unknown model.device", got=name, expected="auto, cpu, mps, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    present = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if present is not None and present.type == device.type else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"model.device asks for {name}",
            got=f"{count} devices of type {device.type} that PyTorch {torch.__version__} can use here",
            remedy="set model.device=auto",
        )
    return device


def _placement(name: str, needed: int) -> dict[str, Any]:
    """Where transformers puts the weights: on one device, or on every GPU when `auto` meets a model too big for one."""
    device = requested_device(name)
    if device.type == "cpu":
        return {}
    spread = name == "auto" and device.type == "cuda" and torch.cuda.device_count() > 1
    if spread and PartialState().num_processes == 1 and needed > _ONE_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return {"device_map": "auto"}
    return {"device_map": {"": device}}


def _bytes_in_memory(headers: dict[str, TensorHeader], dtype: str) -> int:
    stored = sum(header.bytes for header in headers.values())
    if dtype not in DTYPES:
        return stored
    elements = sum(header.elements for header in headers.values())
    return elements * DTYPES[dtype].itemsize


def _load_weights(folder: Path, architecture: PreTrainedConfig, options: dict[str, Any], auto: Any) -> PreTrainedModel:
    with library_errors(f"the model in {folder} cannot be loaded"), silence_libraries():
        model, info = auto.from_pretrained(
            folder,
            config=architecture,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ArtifactError(
            f"the weights in {folder} are incomplete",
            got=f"no values for {len(missing)} tensors, {missing[0]} first; they would be random",
            remedy="copy or download the model again",
        )
    if "device_map" in options and {parameter.device.type for parameter in model.parameters()} & {"cpu", "meta"}:
        raise SeawallError(  # transformers leaves what does not fit on the CPU or on disk, where it cannot be trained
            f"the model in {folder} does not fit on the GPUs here",
            remedy="set model.dtype=bfloat16, use more GPUs, or set model.device=cpu",
        )
    _own_memory(model)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def _own_memory(model: PreTrainedModel) -> None:
    """Copy weights on the CPU out of the mapped file, tied ones once.

    Matrix products on the CPU round differently with the address that the data starts at, and in the file that depends
    on the header's length: without the copy, equal weights from two files give logits that differ in the last bit.
    A file that is changed during a long run would change the model, too.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


@contextmanager
def library_errors(what: str, *, expected: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Turns what transformers, safetensors and huggingface_hub raise for an unusable checkpoint into one line.

    Args:
        what: what cannot be done.
        expected: what would do, where the library does not say.
        remedy: what the user can do.

    Raises:
        SeawallError: memory ran out; what seawall itself raises inside passes unchanged.
        UnsupportedModelError: everything else they raise.
    """
    try:
        yield
    except SeawallError:
        raise
    except _LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise SeawallError(
                f"{what}, because memory is too small",
                remedy="set model.dtype=bfloat16, or use a larger device",
            ) from error
        raise UnsupportedModelError(what, got=first_line(error), expected=expected, remedy=remedy) from error
