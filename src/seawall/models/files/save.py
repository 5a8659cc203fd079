"""Writes a model as a checkpoint folder, and the hashes of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.disk import follow_umask
from seawall.errors import RunFolderError, UnsupportedModelError
from seawall.models.files.checkpoint import HASHES_FILE, first_line, read_json
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import hash_files, storage_errors, write_json

_PLACE_OF_LOADING = ("is_local", "local_files_only", "name_or_path")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """Writes a checkpoint (`write_model`) and the hashes of its files (`write_hashes`), which it returns."""
    write_model(model, tokenizer, folder)
    with storage_errors(folder):
        return write_hashes(folder)


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_shard_size: str | None = None,
) -> None:
    """Writes weights (safetensors), configuration, generation settings, tokenizer and chat template to `folder`.

    transformers may write stacked experts as one tensor per expert, like the family's published checkpoints; loading
    stacks the same bits again. Tied weights are written once. An interruption leaves a partial checkpoint, so write
    into a scratch folder.

    Args:
        model: with weights in memory.
        tokenizer: of the model.
        folder: new or empty.
        max_shard_size: largest file of weights, as `5GB`; None for transformers' default.

    Raises:
        RunFolderError: the folder is not empty, or cannot be written.
        UnsupportedModelError: transformers refuses to write this model's settings.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is not an empty folder", remedy="name a new folder")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(model, tokenizer, folder, {} if max_shard_size is None else {"max_shard_size": max_shard_size})
        for path in folder.rglob("*"):
            if path.is_file():
                follow_umask(path)


def write_hashes(folder: Path) -> dict[str, str]:
    """Writes the hash of every file of a checkpoint into its folder, where loading checks them.

    Returns:
        `sha256:...` of every file, by its path in the folder.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != HASHES_FILE)
    hashes = {path.relative_to(folder).as_posix(): digest for path, digest in hash_files(files).items()}
    write_json(folder / HASHES_FILE, {"files": hashes})
    return hashes


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, settings: Mapping[str, Any]
) -> None:
    try:
        with silence_libraries():
            model.save_pretrained(folder, **settings)
            tokenizer.save_pretrained(folder)
        _forget_place(folder / "tokenizer_config.json")
    except ValueError as error:
        raise UnsupportedModelError("transformers refuses to write this model", got=first_line(error)) from error


def _forget_place(path: Path) -> None:
    """Removes what transformers notes about where a tokenizer was loaded from, which is no property of it."""
    if path.is_file():
        settings = read_json(path)
        write_json(path, {key: value for key, value in settings.items() if key not in _PLACE_OF_LOADING})
