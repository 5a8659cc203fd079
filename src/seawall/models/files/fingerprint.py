"""Fingerprints: hashes that are equal exactly for bit-identical weights."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from seawall.artifacts.store import tensor_digest
from seawall.data.probes import rendered_probes
from seawall.models.sharding import gathered
from seawall.runs.files import read_json

_WORKERS = 4
_ORIGIN = ("transformers_version", "_name_or_path", "name_or_path")


def model_fingerprint(model: nn.Module) -> str:
    """`sha256:` and a hex digest over the model's state dict; equal exactly for bit-identical state dicts.

    The fingerprint is independent of the device and of the checkpoint's files, but depends on how this version of
    transformers names and stacks the weights.
    """
    return state_fingerprint(model.state_dict())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:` and a hex digest of the vocabulary and the chat template, which no fingerprint of weights covers."""
    return _document_hash({"vocabulary": tokenizer.get_vocab(), "template": tokenizer.chat_template})


def rendering_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:` and a hex digest of what a model is asked: the rendered probe prompts with their token ids.

    Template options, clock, merges, normaliser, added tokens and the end token act on it.
    """
    return _document_hash(rendered_probes(tokenizer))


def settings_fingerprint(folder: Path) -> str:
    """`sha256:` and a hex digest of a checkpoint's `config.json` and `generation_config.json`.

    They change what a model computes without changing a weight, as `num_experts_per_tok` does. The version that wrote
    them and the folder's name are left out.

    Raises:
        ArtifactError: a file is damaged.
    """
    paths = [folder / name for name in ("config.json", "generation_config.json")]
    return _document_hash([_without_origin(read_json(path)) if path.is_file() else None for path in paths])


def _without_origin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_origin(item) for key, item in value.items() if key not in _ORIGIN}
    return [_without_origin(item) for item in value] if isinstance(value, list) else value


def _document_hash(document: Any) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()}"


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """The fingerprint of named tensors: a hash over `name dtype shape digest` lines, sorted by name.

    Tensors that share memory (tied embeddings) are read once, and count like equal copies. Each thread copies one
    tensor at a time to the CPU.
    """
    digests = _digests(state)
    return _summary({name: (tensor.dtype, tuple(tensor.shape), digests[name]) for name, tensor in state.items()})


def _digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of every tensor by name; tensors that share memory are read once.

    Sharded tensors are gathered one after the other, in the order of their names, as in all processes. Those that
    share memory are read by each name: an empty slice tells nothing of its memory.
    """
    sharded = {name: tensor for name, tensor in sorted(state.items()) if isinstance(tensor, DTensor)}
    if sharded:
        plain = {name: tensor for name, tensor in state.items() if name not in sharded}
        return {name: tensor_digest(gathered(tensor)) for name, tensor in sharded.items()} | _digests(plain)
    unique = {_identity(tensor): tensor for tensor in state.values()}
    with ThreadPoolExecutor(_WORKERS) as pool:
        digests = dict(zip(unique, pool.map(tensor_digest, unique.values()), strict=True))
    return {name: digests[_identity(tensor)] for name, tensor in state.items()}


@final
class WeightDigests:
    """The digests of a model's tensors. A tensor is read again only after it was written to, moved or replaced.

    Torch counts the in-place operations on a tensor, on its views and on what is detached from it. Writes through
    `tensor.data` are not counted; seawall writes into a loaded model's weights without them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._read: dict[str, tuple[weakref.ref[Tensor], object, str]] = {}

    def fingerprint(self) -> str:
        """`model_fingerprint` of the current weights."""
        state = self._model.state_dict(keep_vars=True)
        stale = {name: tensor for name, tensor in state.items() if not self._is_current(name, tensor)}
        digests = _digests(stale)
        self._read = {
            name: (weakref.ref(tensor), _version(tensor), digests[name] if name in stale else self._read[name][2])
            for name, tensor in state.items()
        }
        return _summary(
            {name: (tensor.dtype, tuple(tensor.shape), self._read[name][2]) for name, tensor in state.items()}
        )

    def _is_current(self, name: str, tensor: Tensor) -> bool:
        if name not in self._read or tensor.is_inference():
            return False
        reference, version, _ = self._read[name]
        return reference() is tensor and version == _version(tensor)


def _version(tensor: Tensor) -> object:
    """What changes when a tensor is written to or gets other memory."""
    return _identity(tensor), None if tensor.is_inference() else tensor._version


class StreamedFingerprint:
    """`state_fingerprint` of tensors that arrive one by one, or in pieces along dimension 0; none is kept."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[torch.dtype, tuple[int, ...], Any]] = {}

    def add(self, name: str, piece: Tensor, shape: tuple[int, ...]) -> None:
        """Adds a tensor, or its next piece.

        Args:
            name: name of the tensor.
            piece: the whole tensor, or its next rows.
            shape: of the whole tensor.
        """
        if name not in self._seen:
            self._seen[name] = (piece.dtype, shape, hashlib.sha256())
        flat = piece.detach().cpu().contiguous().reshape(-1)
        self._seen[name][2].update(flat.view(torch.uint8).numpy().data)

    def value(self, aliases: Mapping[str, str]) -> str:
        """The fingerprint of all tensors added so far.

        Args:
            aliases: further names of added tensors -> the name under which each was added.
        """
        lines = {name: (dtype, shape, digest.hexdigest()) for name, (dtype, shape, digest) in self._seen.items()}
        return _summary(lines | {alias: lines[name] for alias, name in aliases.items()})


def _summary(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], str]]) -> str:
    lines = [
        f"{name} {str(dtype).removeprefix('torch.')} {list(shape)} {digest}\n"
        for name, (dtype, shape, digest) in sorted(tensors.items())
    ]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """`sha256:` and the hex digest of one tensor's type, shape and bytes."""
    return state_fingerprint({"": tensor})


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal exactly for tensors that are the same view of the same memory."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
