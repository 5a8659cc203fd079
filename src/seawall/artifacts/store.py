"""How artifacts lie on disk: `NAME.safetensors`, and `NAME.json` with the tensors' hash, their shapes and the rest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seawall.errors import ArtifactError

SCHEMA = 1
_AGAIN = "run the stage that makes it again, in a new run folder"


def save_artifact(folder: Path, name: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, each whole or not at all; the JSON comes last and vouches for the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.safetensors"
    scratch = data.with_name(f".{data.name}.part")
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, scratch)
    scratch.replace(data)
    document = {
        "schema": SCHEMA,
        "kind": name,
        "sha256": file_hash(data),
        "tensors": {key: [str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in sorted(tensors.items())},
        **fields,
    }
    write_json(folder / f"{name}.json", document)


def load_artifact(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(fields, tensors) of an artifact, checked against its own JSON.

    Raises:
        ArtifactError: a file is missing, damaged, changed since it was written, or of another version.
    """
    document = read_json(folder / f"{name}.json")
    if document.get("schema") != SCHEMA or document.get("kind") != name:
        raise ArtifactError(
            f"{folder / name}.json is not a {name} that this seawall reads",
            got=f"kind {document.get('kind')}, schema {document.get('schema')}",
            expected=f"kind {name}, schema {SCHEMA}",
            remedy=_AGAIN,
        )
    data = folder / f"{name}.safetensors"
    if not data.is_file():
        raise ArtifactError(f"{data} is missing", remedy=_AGAIN)
    found = file_hash(data)
    if found != document.get("sha256"):
        raise ArtifactError(
            f"{data} is damaged or was changed",
            got=f"sha256 {found[:16]}...",
            expected=f"{str(document.get('sha256'))[:16]}...",
            remedy="restore the file from a copy, or " + _AGAIN,
        )
    try:
        tensors = load_file(data)
    except SafetensorError as error:
        raise ArtifactError(f"{data} is not a safetensors file", got=str(error), remedy=_AGAIN) from None
    shapes = {key: [str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in tensors.items()}
    if shapes != document.get("tensors"):
        raise ArtifactError(f"{data} does not hold what {name}.json lists", remedy=_AGAIN)
    return document, tensors


def require_model(fingerprint: str, *, wanted: str, what: str) -> None:
    """Refuses an artifact that was made from another model."""
    if fingerprint != wanted:
        raise ArtifactError(
            f"the {what} was made from another model",
            got=f"weights {fingerprint[:23]}...",
            expected=f"weights {wanted[:23]}...",
            remedy="use the model it was made from, or make it again",
        )


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ArtifactError: it is missing, or holds no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing", remedy=_AGAIN) from None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged", got=str(error), expected="a JSON object", remedy=_AGAIN) from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} is damaged", got=type(document).__name__, expected="a JSON object", remedy=_AGAIN)
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
