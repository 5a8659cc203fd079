"""How artifacts lie on disk: `NAME.safetensors` for tensors, and `NAME.json` for everything else.

The JSON names its kind and schema version, lists every tensor's dtype and shape, holds the hash of the tensor file, and
is sealed by a hash of itself. Both files are written whole or not at all, the JSON last, so an artifact is there when
its JSON is; every load checks all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seawall.errors import ArtifactError
from seawall.runs.files import canonical_hash, file_hash, flush, publish, read_json, write_json

SCHEMA = 1
_AGAIN = "restore it from a copy, or run the stage that makes it again, in a new run folder"


class Fields(BaseModel):
    """Base of what an artifact's JSON holds beside its tensors: typed strictly, nothing missing, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


FieldsT = TypeVar("FieldsT", bound=Fields)


def save_artifact(folder: Path, name: str, fields: Fields, tensors: Mapping[str, Tensor]) -> None:
    """Write `NAME.safetensors` and `NAME.json`.

    Args:
        folder: where; made if it is missing.
        name: the artifact's kind, which names its files.
        fields: what is not a tensor.
        tensors: any dtype and device.

    Raises:
        OSError, SafetensorError: the disk refuses; `seawall.runs.files.storage_errors` says so in one line.
    """
    data = save_tensors(folder / f"{name}.safetensors", tensors)
    save_document(folder / f"{name}.json", name, {**fields.model_dump(), "tensors": _listed(tensors), **data})


def load_artifact(folder: Path, name: str, fields: type[FieldsT]) -> tuple[FieldsT, dict[str, Tensor]]:
    """The fields and tensors (on the CPU) of an artifact.

    Raises:
        ArtifactError: a file is missing, damaged, changed since it was written, or of another version.
    """
    path = folder / f"{name}.json"
    document = load_document(path, name)
    listed, wanted = document.pop("tensors", None), document.pop("sha256", None)
    tensors = load_tensors(folder / f"{name}.safetensors", sha256=str(wanted))
    if _listed(tensors) != listed:
        raise ArtifactError(f"{path} lists other tensors than are in {name}.safetensors", remedy=_AGAIN)
    return parse_fields(path, document, fields), tensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write a safetensors file whole or not at all; returns `{"sha256": ...}` of it for the JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, scratch)
    except (OSError, SafetensorError):
        scratch.unlink(missing_ok=True)
        raise
    flush(scratch)
    digest = file_hash(scratch)
    publish(scratch, path)
    return {"sha256": digest}


def load_tensors(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose hash is known.

    Raises:
        ArtifactError: it is missing, cannot be read, or has another hash.
    """
    try:
        found = file_hash(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", remedy=_AGAIN) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror, remedy=_AGAIN) from error
    if found != sha256:
        raise ArtifactError(
            f"{path} is damaged or was changed", got=f"{found[:23]}...", expected=f"{sha256[:23]}...", remedy=_AGAIN
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file", got=str(error), remedy=_AGAIN) from error


def save_document(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    """Write a sealed JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed = {"schema": SCHEMA, "kind": kind, **document}
    write_json(path, {**sealed, "seal": canonical_hash(sealed)})


def load_document(path: Path, kind: str) -> dict[str, Any]:
    """What `save_document` was given.

    Raises:
        ArtifactError: the file is missing, damaged, changed since it was written, or of another kind or version.
    """
    document = read_json(path)
    if document.get("schema") != SCHEMA or document.get("kind") != kind:
        raise ArtifactError(
            f"{path} is not a file that this seawall reads here",
            got=f"kind {document.get('kind')!r}, schema {document.get('schema')!r}",
            expected=f"kind {kind!r}, schema {SCHEMA}",
            remedy=_AGAIN,
        )
    seal = document.pop("seal", None)
    if seal != canonical_hash(document):
        raise ArtifactError(f"{path} is damaged or was changed", got="a seal that does not fit", remedy=_AGAIN)
    return {key: value for key, value in document.items() if key not in ("schema", "kind")}


def parse_fields(path: Path, document: Mapping[str, Any], fields: type[FieldsT]) -> FieldsT:
    """The document as typed fields.

    Raises:
        ArtifactError: a field is missing, unknown or of another type; names it.
    """
    try:
        return fields.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where} is wrong", got=first["msg"], remedy=_AGAIN) from error


def require(condition: bool, path: Path, expected: str) -> None:
    """Refuse an artifact whose parts do not fit each other.

    Raises:
        ArtifactError: `condition` is false.
    """
    if not condition:
        raise ArtifactError(f"{path} contradicts itself", expected=expected, remedy=_AGAIN)


def require_model(fingerprint: str, *, wanted: str, what: str) -> None:
    """Refuse an artifact that was made from another model.

    Args:
        fingerprint: of the model that the artifact belongs to.
        wanted: of the model at hand.
        what: the artifact, for the message.

    Raises:
        ArtifactError: they differ; names both.
    """
    if fingerprint != wanted:
        raise ArtifactError(
            f"the {what} was made from another model",
            got=f"a {what} of the weights {fingerprint[:23]}...",
            expected=f"the weights {wanted[:23]}...",
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


def _listed(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """dtype and shape of every tensor, as the JSON lists them."""
    return {key: [str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in sorted(tensors.items())}
