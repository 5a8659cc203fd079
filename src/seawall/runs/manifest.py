"""The manifest: with which versions, on what, from which inputs, and how long each stage took."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from seawall.runs.files import read_json, write_json
from seawall.runs.folder import RunFolder

SCHEMA = 1
_PACKAGES = ("seawall", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Versions and machine, without importing what it names; a package that is not installed is null."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
    }


def update_manifest(run: RunFolder, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into the manifest, section by section, write it whole, and return it."""
    exists = run.manifest.is_file()
    old = read_json(run.manifest) if exists else {"schema": SCHEMA, "environment": environment()}
    merged = _merge(old, changes)
    if merged != old or not exists:
        write_json(run.manifest, merged)
    return merged


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merge(result[key], value) if both else value
    return result
