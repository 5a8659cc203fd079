"""What a folder with an adapter or a delta brings beside its weights: a tokenizer, a chat template, its base's name."""

from __future__ import annotations

import copy
import re
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.data.rendering import check_chat_template
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.files.checkpoint import read_json, weight_files
from seawall.models.files.fingerprint import rendering_fingerprint, tokenizer_fingerprint
from seawall.models.files.load import has_vocabulary, open_tokenizer
from seawall.runs.files import file_hash

_CACHED = re.compile(r"models--(.+)")


def own_tokenizer(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig
) -> PreTrainedTokenizerBase | None:
    """The tokenizer and chat template that a folder brings; None where both are the base's.

    Args:
        folder: of an adapter or a delta.
        model: the base, loaded.
        tokenizer: of the base.
        config: the base's settings.

    Raises:
        UnsupportedModelError: the tokenizer cannot be loaded, or has tokens that the model has no embedding for.
        DataError: its chat template cannot be used.
    """
    template = _template(folder)
    if has_vocabulary(folder):
        own = open_tokenizer(folder, config)
        own.chat_template = own.chat_template or tokenizer.chat_template
    elif template is not None:
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
    else:
        return None
    _require_embeddings(folder, model, own)
    check_chat_template(own)
    same = all(digest(own) == digest(tokenizer) for digest in (tokenizer_fingerprint, rendering_fingerprint))
    return None if same else own


def require_base(adapter: Path, names: tuple[str, ...]) -> None:
    """Refuses an adapter that was made for another model: by its weights where both are on this machine, else by name.

    Names alone do not tell folders apart: every run of seawall exports to a folder `model`.

    Args:
        adapter: the adapter's folder.
        names: the model's names: its folder or Hub id.

    Raises:
        ConfigError: the adapter's settings name another base.
    """
    base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return
    folders = [folder for name in names if _holds_weights(folder := Path(name).expanduser())]
    if folders and _holds_weights(Path(base)):
        is_same = any(folder.samefile(base) or _same_weights(Path(base), folder) for folder in folders)
    else:
        is_same = _short(base) in {_short(name) for name in names}
    if is_same:
        return
    raise ConfigError(
        f"the adapter in {adapter} was made for another model",
        got=f"base_model_name_or_path {base}",
        expected=names[0],
        remedy="name its own model (--model), or correct base_model_name_or_path in its adapter_config.json",
    )


def _template(folder: Path) -> str | None:
    """The chat template of a folder without a vocabulary."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json").get("chat_template")
        return template if isinstance(template, str) else None
    return None


def _require_embeddings(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise UnsupportedModelError(
            f"the tokenizer in {folder} has tokens that the model has no embedding for",
            got=f"token {largest}",
            expected=f"tokens below {rows}",
            remedy="name the model that the adapter was trained on, with its enlarged vocabulary",
        )


def _short(name: str) -> str:
    """The last part of a folder or Hub id, also of a cached snapshot of the Hub."""
    path = Path(name)
    cached = next((match[1] for part in path.parts if (match := _CACHED.fullmatch(part))), None)
    return (cached.rpartition("--")[2] if cached is not None else path.name).casefold()


def _holds_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _same_weights(first: Path, second: Path) -> bool:
    hashes = ([file_hash(path) for path in weight_files(folder)] for folder in (first, second))
    return next(hashes) == next(hashes)
