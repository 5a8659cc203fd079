"""Plain bfloat16 copies of MXFP4 and FP8 checkpoints, which transformers' own configurations dequantise.

The copy is a checkpoint like any other, so that every verb can read, change, fingerprint and export it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config, PreTrainedConfig, PreTrainedModel

from seawall.disk import cache_folder
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.accounted import require_expected, require_scales
from seawall.models.files.checkpoint import read_config, read_headers
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import flush_tree, publish

QUANTIZERS: dict[str, Callable[..., Any]] = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
"""`quant_method` of config.json -> transformers' configuration with `dequantize`."""
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "k_scale", "v_scale")
"""Ends of the names of scales for computing in 8 bits, which plain weights do without."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantisation that a config.json states, also for the text part of a larger model; None for plain weights."""
    return raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")


def dequantised(folder: Path, architecture: PreTrainedConfig, *, cache: Path | None = None) -> Path:
    """The folder of the plain copy of a quantised checkpoint, which the first call writes.

    Args:
        folder: the checkpoint; returned as it is where its weights are plain.
        architecture: its configuration.
        cache: folder of the copies; None takes seawall's cache.

    Raises:
        UnsupportedModelError: the weights are quantised by another method, or transformers cannot dequantise them.
        ArtifactError: transformers has no values for some weights.
    """
    stated = quantization(read_config(folder))
    if stated is None:
        return folder
    method = str(stated.get("quant_method"))
    if method not in QUANTIZERS:
        raise UnsupportedModelError(
            f"the weights in {folder} cannot be dequantised",
            got=method,
            expected=" or ".join(QUANTIZERS),
            remedy="use the model's unquantised version",
        )
    target = (cache or cache_folder()) / f"dequantised-{folder.resolve().name[:40]}-{_files_hash(folder)}"
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dequantised-") as scratch:
            _write(folder, architecture, stated, Path(scratch) / "copy")
            publish(Path(scratch) / "copy", target)
    return target


def _write(folder: Path, architecture: PreTrainedConfig, stated: Mapping[str, Any], target: Path) -> None:
    """The copy: the weights as a model without quantisation saves them, and the other files."""
    require_scales(folder, read_headers(folder))
    settings = {key: value for key, value in stated.items() if key not in ("quant_method", "dequantize")}
    quantizer = QUANTIZERS[str(stated["quant_method"])](**settings, dequantize=True)
    with silence_libraries():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=architecture,
            quantization_config=quantizer,
            dtype=torch.bfloat16,
            device_map={"": "cpu"},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    require_expected(folder, (name for name in info["unexpected_keys"] if not name.endswith(_OF_ACTIVATIONS)))
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ArtifactError(
            f"the weights in {folder} are incomplete",
            got=f"no values for {len(missing)} tensors, {missing[0]} first",
            remedy="copy or download the model again",
        )
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file() and not path.name.endswith((*_WEIGHTS, ".index.json")):
            shutil.copyfile(path, target / path.name)
    with silence_libraries():
        _plain(model).save_pretrained(target)
    flush_tree(target)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows of no quantisation."""
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(config)).to(torch.bfloat16)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    if model.generation_config is not None:
        plain.generation_config = model.generation_config
    return plain


def _files_hash(folder: Path) -> str:
    """A short hash of names, sizes and times of the files, and of config.json."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    text = json.dumps([files, read_config(folder)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
