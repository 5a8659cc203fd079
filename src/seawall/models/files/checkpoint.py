"""A checkpoint folder on disk: its safetensors headers, and the integrity of its files.

Reading needs neither weights nor model classes, so `doctor` and `plan` work on models of any size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.disk import regular
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.runs.files import hash_files

HASHES_FILE = "seawall_files.json"
"""Written into every checkpoint of seawall: {"files": {file name: "sha256:..."}}. Checked before every load."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER = 100_000_000
_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
} | dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor in a safetensors header: type (by safetensors' name), shape, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file.

    Raises:
        ArtifactError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(regular(path).read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path.name} is missing in {path.parent}", remedy="copy the model again") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged", got=first_line(error), expected="JSON") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is damaged", got=type(content).__name__, expected="a JSON object")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        UnsupportedModelError: the folder has no config.json.
        ArtifactError: config.json is damaged.
    """
    if not (folder / "config.json").exists():
        raise UnsupportedModelError(
            f"no config.json in {folder}", expected="a model folder in Hugging Face format", remedy="check model.id"
        )
    return read_json(folder / "config.json")


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """The headers of a checkpoint's tensors by name; every file's size is checked against its header.

    Raises:
        UnsupportedModelError: the folder has no safetensors weights, or only pickled ones.
        ArtifactError: a file is missing, truncated, or longer than its header says; there are two sets of weights.
    """
    if _is_single(folder):
        return _file_headers(folder / _SINGLE)
    headers: dict[str, TensorHeader] = {}
    weight_map = _weight_map(folder)
    for path in weight_files(folder):
        in_file = _file_headers(path)
        misplaced = sorted(name for name in in_file if weight_map.get(name) != path.name)
        if misplaced:
            listed = weight_map.get(misplaced[0], "no file")
            raise ArtifactError(
                f"{path} holds tensors that {_INDEX} does not list for it",
                got=f"{len(misplaced)} tensors, {misplaced[0]} first",
                expected=f"{misplaced[0]} in {listed}, as {_INDEX} says",
                remedy="copy or download the model again",
            )
        headers |= in_file
    missing = sorted(set(weight_map) - set(headers))
    if missing:
        raise ArtifactError(
            f"the weights in {folder} are incomplete",
            got=f"{len(missing)} tensors of {_INDEX} in no file, {missing[0]} first",
            remedy="copy or download the model again",
        )
    return headers


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights; other safetensors files of the folder are left out.

    Raises:
        UnsupportedModelError: the folder has no safetensors weights, or only pickled ones.
        ArtifactError: the index is damaged, or there are two sets of weights.
    """
    if _is_single(folder):
        return [folder / _SINGLE]
    return [folder / file for file in sorted(set(_weight_map(folder).values()))]


def _is_single(folder: Path) -> bool:
    """Whether the weights are one file, not shards with an index."""
    if not (folder / _SINGLE).exists():
        return False
    listed = _weight_map(folder).values() if (folder / _INDEX).exists() else ()
    shards = sorted(file for file in set(listed) - {_SINGLE} if (folder / file).exists())
    if shards:
        raise ArtifactError(
            f"{folder} holds two sets of weights, of which programs take one or the other",
            got=f"{_SINGLE} beside {len(shards)} files of {_INDEX}, {shards[0]} first",
            expected="one of them",
            remedy="remove the set that does not belong to the model, with the index where that is the shards",
        )
    return True


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file name, from the index."""
    if not (folder / _INDEX).exists():
        raise _no_safetensors(folder)
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(file) for file in weight_map.values()):
        raise ArtifactError(f"{folder / _INDEX} is damaged", expected="a weight_map from tensors to file names")
    return weight_map


def _is_file_name(value: object) -> bool:
    """Whether the value is a bare file name; an index with paths could lead out of its folder."""
    return isinstance(value, str) and Path(value).name == value


def _no_safetensors(folder: Path) -> SeawallError:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        return UnsupportedModelError(
            f"the weights in {folder} are pickled, and opening a pickle can run any code",
            got=pickled[0],
            expected="safetensors",
            remedy="if you trust the author, convert them: load the model in transformers, then save_pretrained",
        )
    return UnsupportedModelError(
        f"no weights in {folder}", expected=f"{_SINGLE} or {_INDEX} with its files", remedy="check model.id"
    )


def _file_headers(path: Path) -> dict[str, TensorHeader]:
    """The headers of one safetensors file: 8 bytes of length, JSON, then the tensors without gaps to the file's end."""
    try:
        size = regular(path).stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 8 + length <= min(size, _MAX_HEADER) else b""
    except FileNotFoundError:
        raise ArtifactError(f"{path.name} is missing in {path.parent}", remedy="copy the model again") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror) from None
    if not text:
        raise _damaged(path, f"{size} bytes", "a safetensors file with a complete header")
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        headers = {name: _tensor_header(entry) for name, entry in entries.items()}
        spans = sorted((int(start), int(end)) for start, end in (entry["data_offsets"] for entry in entries.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(path, "an unreadable header", "a safetensors header") from None
    end = 0
    for start, stop in spans:
        if start != end:
            raise _damaged(path, f"tensors that overlap or leave a gap at byte {end}", "contiguous tensors")
        end = stop
    if size != 8 + length + end:
        raise _damaged(path, f"{size} bytes", f"{8 + length + end} bytes by its header")
    return headers


def _tensor_header(entry: Mapping[str, Any]) -> TensorHeader:
    shape = tuple(int(side) for side in entry["shape"])
    start, end = entry["data_offsets"]
    header = TensorHeader(str(entry["dtype"]), shape, int(end) - int(start))
    element = _BYTES.get(header.dtype)
    if element is not None and math.prod(shape) * element != header.bytes:
        raise ValueError("the shape does not fit the bytes")
    return header


def _damaged(path: Path, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged", got=got, expected=expected, remedy="copy or download the file again")


def verify_hashes(folder: Path) -> None:
    """Checks the files of a checkpoint that seawall wrote against their hashes; other checkpoints have none and pass.

    Raises:
        ArtifactError: a file is missing or changed.
    """
    if not (folder / HASHES_FILE).exists():
        return
    stored = {folder / name: digest for name, digest in sorted(_stored_hashes(folder).items())}
    absent = next((path for path in stored if not path.is_file()), None)
    if absent is not None:
        raise ArtifactError(f"{absent.name} is missing in {folder}", remedy="copy the model again")
    hashes = hash_files(stored)
    for path, expected in stored.items():
        if hashes[path] != expected:
            raise ArtifactError(
                f"{path} is not the file that seawall wrote",
                got="another sha256",
                expected=expected,
                remedy=f"copy the model again, or delete {HASHES_FILE} if you changed the file on purpose",
            )


def _stored_hashes(folder: Path) -> dict[str, str]:
    """File -> hash, from seawall's list, which names every file of weights."""
    path = folder / HASHES_FILE
    hashes = read_json(path).get("files")
    is_list = isinstance(hashes, dict) and all(isinstance(digest, str) for digest in hashes.values())
    if hashes is not None and is_list and {file.name for file in weight_files(folder)} <= hashes.keys():
        return dict(hashes)
    raise ArtifactError(
        f"{path} is damaged",
        expected="the hash of every file of weights",
        remedy="copy the model again, or delete the file if you changed the model on purpose",
    )


def first_line(error: Exception) -> str:
    """The first line with text of another library's error; the error's class where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
