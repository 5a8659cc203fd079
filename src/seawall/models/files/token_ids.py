"""Special tokens in a checkpoint's generation settings, checked before anything counts with them."""

from __future__ import annotations

from pathlib import Path

from seawall.errors import ArtifactError
from seawall.models.files.checkpoint import read_json

_MOST_IDS = 2**31


def require_token_ids(folder: Path) -> None:
    """Refuses generation settings whose special tokens are no ids.

    Raises:
        ArtifactError: the file is damaged, or an id is no whole number.
    """
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = settings.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and abs(token) < _MOST_IDS for token in ids):
            raise ArtifactError(f"{path}: {key} is wrong", got=repr(value)[:60], expected="token ids, whole numbers")
