"""Writing a checkpoint that transformers loads like any other, with a hash of every file."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.errors import RunFolderError, UnsupportedModelError
from seawall.models.checkpoint import HASHES_FILE, first_line
from seawall.models.quiet import quiet
from seawall.runs.files import file_hash, storage_errors, write_json


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """Write weights (safetensors), configuration, generation settings, tokenizer and chat template to `folder`.

    transformers may write stacked experts as one tensor per expert, as the family's published checkpoints have them;
    loading stacks the same bits again. Tied weights are written once. The hashes are left in the folder too, where
    loading checks them. When this is interrupted, half a checkpoint is left: write into a scratch folder.

    Returns:
        `sha256:...` of every file, by its path in the folder.

    Raises:
        RunFolderError: the folder is not empty, or cannot be written.
        UnsupportedModelError: transformers refuses to write this model's settings.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is not an empty folder", remedy="name a new one")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(model, tokenizer, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
        write_json(folder / HASHES_FILE, {"files": hashes})
    return hashes


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except ValueError as error:
        raise UnsupportedModelError("transformers refuses to write this model", got=first_line(error)) from error
