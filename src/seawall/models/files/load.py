"""Loads a model and its tokenizer; every problem is checked first and reported in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from seawall.data.rendering import TemplateSettings, check_chat_template, use_template
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.models.files.accounted import (
    require_accounted,
    require_expected,
    require_float_weights,
    require_one_value,
    require_scales,
    require_top_k,
)
from seawall.models.files.bare import BareErrors
from seawall.models.files.checkpoint import first_line, read_config, read_headers, read_json, verify_hashes
from seawall.models.files.dequantise import QUANTIZERS, dequantised, quantization
from seawall.models.files.hub import locate
from seawall.models.files.placement import bytes_in_memory, device_options, requested_dtype
from seawall.models.files.token_ids import require_token_ids
from seawall.models.memory import is_out_of_memory, own_memory
from seawall.models.moe.by_expert import experts_options
from seawall.models.sharding import freeze_if_sharded
from seawall.models.silence_libraries import silence_libraries

_LIBRARY_ERRORS = (
    *(OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError, StrictDataclassError),
    # A hostile config.json holds values of wrong types, zeros and unknown names.
    *(TypeError, AttributeError, ArithmeticError, AssertionError),
)
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")


def load_model(config: ModelConfig, *, as_stored: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode on its device, and its tokenizer.

    Args:
        config: the model and how to load it.
        as_stored: whether quantised weights are taken, as transformers loads them; they cannot be changed.

    Raises:
        ConfigError: the model, the type or the device does not exist.
        UnsupportedModelError: no causal language model of transformers, no tokenizer, no safetensors, or quantised.
        DataError: the tokenizer has no chat template.
        ArtifactError: files are damaged or incomplete.
    """
    folder = model_folder(config)
    architecture = load_architecture(folder, config)
    if not as_stored:
        require_plain_weights(folder, read_config(folder))
    tokenizer = _chat_tokenizer(folder, config)
    return load_weights(folder, architecture, config), tokenizer


def model_folder(config: ModelConfig) -> Path:
    """The folder of a model's files: with `model.dequantize` of a plain copy, which the first call writes.

    Raises:
        ConfigError: the model does not exist.
        UnsupportedModelError: transformers cannot dequantise the weights.
    """
    folder = locate(config)
    if not config.dequantize:
        return folder
    with library_errors(f"the weights in {folder} cannot be dequantised"):
        return dequantised(folder, load_architecture(folder, config))


def load_weights(
    folder: Path, architecture: PreTrainedConfig, config: ModelConfig, *, auto: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """The model of a folder, in evaluation mode on its device.

    Args:
        folder: the checkpoint.
        architecture: its configuration.
        config: type, device and expert implementation to load it with.
        auto: the Auto class of transformers that picks the model's class.

    Raises:
        ConfigError: the type or the device does not exist.
        UnsupportedModelError: transformers cannot load the model, or it has no safetensors weights.
        ArtifactError: files are damaged or incomplete.
    """
    headers = read_headers(folder)
    quantised = quantization(read_config(folder)) is not None
    (require_scales if quantised else require_float_weights)(folder, headers)
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{folder} holds a checkpoint and an adapter, which transformers would load on top",
            got="config.json and adapter_config.json in one folder",
            expected="a checkpoint or an adapter",
            remedy="move the adapter's files to another folder, and name that one with --adapter",
        )
    options = device_options(config, bytes_in_memory(headers, config.dtype))
    options |= {"dtype": requested_dtype(config.dtype), "trust_remote_code": config.trust_remote_code}
    options |= experts_options(config.experts_implementation)
    verify_hashes(folder)
    model = _load_weights(folder, architecture, options, auto)
    if not quantised:
        require_accounted(folder, model, headers)
    freeze_if_sharded(model)
    return model


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked to have a chat template.

    Raises:
        ConfigError: the model does not exist.
        UnsupportedModelError: the model has no tokenizer, or transformers cannot load it.
        DataError: the tokenizer has no chat template.
        ArtifactError: files are damaged.
    """
    return _chat_tokenizer(locate(config, weights=False), config)


def _chat_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    tokenizer = open_tokenizer(folder, config)
    check_chat_template(tokenizer)
    return tokenizer


def open_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with or without a chat template.

    The files are checked first, because transformers creates an empty tokenizer where they are missing.

    Raises:
        ConfigError: the tokenizer has no chat template of the name that the settings give.
        UnsupportedModelError: the folder has no tokenizer, or transformers cannot load it.
        ArtifactError: files are damaged.
    """
    if not has_vocabulary(folder):
        raise UnsupportedModelError(
            f"no tokenizer in {folder}",
            expected="tokenizer.json",
            remedy="copy the tokenizer files from the original model",
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_json(folder / name)
    with library_errors(f"the tokenizer in {folder} cannot be loaded"), BareErrors(), silence_libraries():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    use_template(tokenizer, TemplateSettings(config.template, dict(config.template_options)))
    return tokenizer


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own."""
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARIES)


def load_architecture(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    """The configuration of a model, checked to be a causal language model that transformers can load.

    Raises:
        UnsupportedModelError: the model is not one.
        ArtifactError: config.json is damaged, or has more experts per token than experts.
    """
    _require_causal(read_config(folder), config)
    require_top_k(read_config(folder), folder)
    require_token_ids(folder)
    return load_config(folder, config)


def load_config(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    """The configuration of a folder's model, of any kind.

    Raises:
        UnsupportedModelError: transformers cannot read the configuration.
    """
    with library_errors(f"{folder / 'config.json'} does not fit its model"), silence_libraries():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)


def require_plain_weights(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuses quantised weights.

    Args:
        folder: the checkpoint, for messages.
        raw: its config.json.

    Raises:
        UnsupportedModelError: the weights are quantised.
    """
    quantized = quantization(raw)
    if quantized:
        raise UnsupportedModelError(
            f"the weights in {folder} are quantised",
            got=quantized.get("quant_method", "quantization_config"),
            expected="float32, bfloat16 or float16 weights, which seawall can change",
            remedy=f"set model.dequantize=true ({' or '.join(QUANTIZERS)}), or use the model's unquantised version",
        )


def _require_causal(raw: dict[str, Any], config: ModelConfig) -> None:
    model_type = raw.get("model_type")
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "AutoModelForCausalLM" in raw.get("auto_map", {}):
        if config.trust_remote_code:
            return
        raise UnsupportedModelError(
            f"model {config.id} needs Python code from its own repository, which is off by default",
            got=f"model_type {model_type}",
            remedy="read the code; if you trust its author, set model.trust_remote_code=true",
        )
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model {config.id} is not a causal language model",
            got=f"model_type {model_type}",
            expected="a model that generates text",
        )
    raise UnsupportedModelError(
        f"model {config.id} has an architecture that the installed transformers does not know",
        got=f"model_type {model_type}",
        remedy="upgrade transformers",
    )


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
            got=f"no values for {len(missing)} tensors, {missing[0]} first (transformers would fill in random ones)",
            remedy="copy or download the model again",
        )
    require_expected(folder, info["unexpected_keys"])
    require_one_value(folder, model)
    kinds = {parameter.device.type for parameter in model.parameters()}
    if "device_map" in options and ("meta" in kinds or ("cpu" in kinds and len(kinds) > 1)):
        # transformers moves weights that do not fit to the CPU or to disk, where they cannot be trained.
        raise SeawallError(
            f"the model in {folder} does not fit on the GPUs of this machine",
            remedy="set model.dtype=bfloat16, raise model.max_memory, use more GPUs, or set model.device=cpu",
        )
    own_memory(model)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


@contextmanager
def library_errors(what: str, *, expected: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Turns errors that transformers, safetensors and huggingface_hub raise for an unusable checkpoint into one line.

    Args:
        what: what cannot be done.
        expected: what would be accepted, where the library does not say.
        remedy: what the user can do.

    Raises:
        SeawallError: memory ran out. Errors of seawall itself pass unchanged.
        UnsupportedModelError: any other error of these libraries.
    """
    try:
        yield
    except SeawallError:
        raise
    except _LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise SeawallError(
                f"{what}: out of memory",
                remedy="set model.dtype=bfloat16, or use a larger device",
            ) from error
        raise UnsupportedModelError(what, got=first_line(error), expected=expected, remedy=remedy) from error
