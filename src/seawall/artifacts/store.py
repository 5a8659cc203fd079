"""Artifacts on disk: a frozen dataclass as a JSON file, its tensors as a safetensors file of the same name beside it.

The JSON names its kind and schema version, lists every tensor's dtype and shape, holds the hash of the tensor file, and
is sealed by a hash of its own content. Both files are written atomically, the JSON last: an artifact exists when its
JSON does. Every load checks all of this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seawall.disk import follow_umask
from seawall.errors import ArtifactError
from seawall.runs.files import canonical_hash, file_hash, flush, publish, read_json, write_json

SCHEMA = 1
_REMEDY = "restore it from a copy, or run the stage that writes it again, in a new run folder"
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
RecordT = TypeVar("RecordT")


def save_record(path: Path, kind: str, record: Any, /, **derived: object) -> None:
    """Write a frozen dataclass: its tensors beside `path`, everything else to `path`.

    Args:
        path: `NAME.json`; the folder is made if it is missing. Tensors go to `NAME.safetensors`.
        kind: names the artifact in its JSON.
        record: fields are JSON values, dataclasses of JSON values, tensors (any dtype and device), or one mapping of
            tensors by their names in the file.
        derived: further entries of the JSON, for readers, that follow from the record.

    Raises:
        OSError, SafetensorError: the disk refuses; `seawall.runs.files.storage_errors` reports it in one line.
    """
    document = {**record_document(record), **derived}
    if _tensor_hints(type(record)):
        save_parts(path, kind, document, record_tensors(record))
    else:
        save_document(path, kind, document)


def load_record(
    path: Path, kind: str, record: type[RecordT], *, later: tuple[str, ...] = (), derived: tuple[str, ...] = ()
) -> RecordT:
    """The dataclass that `save_record` wrote, its tensors on the CPU.

    Args:
        path: of the JSON.
        kind: of the artifact.
        record: the dataclass.
        later: fields that files of earlier versions lack; these get their defaults.
        derived: entries of the JSON that are no fields.

    Raises:
        ArtifactError: a file is missing, damaged, changed since it was written, or of another version; a field is
            missing, unknown or of another type.
    """
    hints = _tensor_hints(record)
    document, tensors = load_parts(path, kind) if hints else (load_document(path, kind), {})
    entries = {key: value for key, value in document.items() if key not in derived}
    parsed = parse_fields(path, entries, record, later=later)
    return record(**parsed, **_tensor_fields(path, record, tensors))


def record_document(record: Any) -> dict[str, Any]:
    """The fields of a dataclass without tensors, as JSON holds them: string keys, lists, numbers."""
    cls: Any = type(record)
    model = _json_model(cls)
    values = model(**{name: getattr(record, name) for name in model.model_fields})
    # The seal is of sorted keys: integers sort differently before they are JSON's strings.
    document: dict[str, Any] = json.loads(json.dumps(values.model_dump()))
    return document


def record_tensors(record: Any) -> dict[str, Tensor]:
    """The tensors of a dataclass by their names in the file: a field's name, or the keys of a mapping."""
    tensors: dict[str, Tensor] = {}
    for name in _tensor_hints(type(record)):
        value = getattr(record, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None:
            tensors |= value
    return tensors


def parse_fields(path: Path, document: object, record: type, *, later: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass without tensors, from what `record_document` gave.

    Args:
        path: for messages.
        document: JSON.
        record: the dataclass.
        later: fields that may be missing; these are missing from the result then.

    Raises:
        ArtifactError: a field is missing, unknown or of another type; names it.
    """
    try:
        values = _json_model(record, later).model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path}: {field} is wrong", got=first["msg"], remedy=_REMEDY) from error
    return {name: getattr(values, name) for name in values.model_fields_set}


def save_parts(path: Path, kind: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an artifact, the JSON last.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    stored = save_tensors(path.with_suffix(".safetensors"), tensors)
    save_document(path, kind, {**document, "tensors": _listed(tensors), **stored})


def load_parts(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors that `save_parts` wrote.

    Raises:
        ArtifactError: a file is missing, damaged, changed since it was written, or of another version.
    """
    document = load_document(path, kind)
    listed, sha256 = document.pop("tensors", None), document.pop("sha256", None)
    data = path.with_suffix(".safetensors")
    tensors = load_tensors(data, sha256=str(sha256))
    if _listed(tensors) != listed:
        raise ArtifactError(f"{path} lists other tensors than {data.name} holds", remedy=_REMEDY)
    return document, tensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write a safetensors file atomically; returns its hash as `{"sha256": ...}`, for the JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, scratch)
    except (OSError, SafetensorError):
        scratch.unlink(missing_ok=True)
        raise
    follow_umask(scratch)
    flush(scratch)
    digest = file_hash(scratch)
    publish(scratch, path)
    return {"sha256": digest}


def load_tensors(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ArtifactError: the file is missing, cannot be read, or has another hash than `sha256`.
    """
    try:
        digest = file_hash(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", remedy=_REMEDY) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror, remedy=_REMEDY) from error
    if digest != sha256:
        raise ArtifactError(
            f"{path} is damaged or was changed", got=f"{digest[:23]}...", expected=f"{sha256[:23]}...", remedy=_REMEDY
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file", got=str(error), remedy=_REMEDY) from error


def save_document(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    """Write a sealed JSON file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed = {"schema": SCHEMA, "kind": kind, **document}
    write_json(path, {**sealed, "seal": canonical_hash(sealed)})


def load_document(path: Path, kind: str) -> dict[str, Any]:
    """The JSON that `save_document` wrote, without kind, schema and seal.

    Raises:
        ArtifactError: the file is missing, damaged, changed since it was written, or of another kind or version.
    """
    document = read_json(path)
    if document.get("schema") != SCHEMA or document.get("kind") != kind:
        raise ArtifactError(
            f"{path} has another kind or version",
            got=f"kind {document.get('kind')!r}, schema {document.get('schema')!r}",
            expected=f"kind {kind!r}, schema {SCHEMA}",
            remedy=_REMEDY,
        )
    seal = document.pop("seal", None)
    if seal != canonical_hash(document):
        raise ArtifactError(f"{path} is damaged or was changed", got="a seal that does not fit", remedy=_REMEDY)
    return {key: value for key, value in document.items() if key not in ("schema", "kind")}


def require(condition: bool, path: Path, expected: str) -> None:
    """Refuse an artifact whose parts contradict each other.

    Raises:
        ArtifactError: `condition` is false.
    """
    if not condition:
        raise ArtifactError(f"{path} contradicts itself", expected=expected, remedy=_REMEDY)


def require_model(fingerprint: str, *, expected: str, artifact: str) -> None:
    """Refuse an artifact of another model.

    Args:
        fingerprint: of the model that the artifact belongs to.
        expected: fingerprint of the current model.
        artifact: the artifact's name, for the message.

    Raises:
        ArtifactError: the fingerprints differ; names both.
    """
    if fingerprint != expected:
        raise ArtifactError(
            f"the {artifact} was made from another model",
            got=f"a {artifact} of the weights {fingerprint[:23]}...",
            expected=f"the weights {expected[:23]}...",
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


def tensor_digest(tensor: Tensor) -> str:
    """Hex digest of a tensor's bytes in row order, independent of strides and device. hashlib releases the GIL."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _listed(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """dtype and shape of every tensor, as the JSON lists them."""
    return {key: [str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in sorted(tensors.items())}


@cache
def _json_model(record: Any, later: tuple[str, ...] = ()) -> type[BaseModel]:
    """Checks and writes the fields of a dataclass without tensors; those in `later` may be missing."""
    hints, with_tensors = get_type_hints(record, include_extras=True), _tensor_hints(record)
    parts: dict[str, Any] = {
        field.name: (hints[field.name], None if field.name in later else ...)
        for field in fields(record)
        if field.name not in with_tensors
    }
    return create_model(record.__name__, __config__=_STRICT, **parts)


def _tensor_hints(record: type) -> dict[str, Any]:
    """The types of the fields of a dataclass that hold tensors."""
    return {name: hint for name, hint in get_type_hints(record).items() if _holds_tensors(hint)}


def _holds_tensors(hint: Any) -> bool:
    """Whether a type is a tensor (`Float[Tensor, ...]` is one) or has tensors among its parts."""
    if hint is Tensor or getattr(hint, "array_type", None) is Tensor:
        return True
    is_record = isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "_fields"))
    return any(map(_holds_tensors, get_type_hints(hint).values() if is_record else get_args(hint)))


def _tensor_fields(path: Path, record: type, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a dataclass that hold tensors, from what `record_tensors` gave."""
    hints = _tensor_hints(record)
    if any(get_origin(hint) is Mapping for hint in hints.values()):
        return dict.fromkeys(hints, tensors)
    required = {field.name for field in fields(record) if field.name in hints and field.default is MISSING}
    require(required <= tensors.keys() <= hints.keys(), path, f"the tensors {', '.join(hints)}")
    return dict(tensors)
