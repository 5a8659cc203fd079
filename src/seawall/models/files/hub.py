"""Locates a model: a local folder, or a repository of the Hugging Face Hub; uploads one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import HfApi, get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.repocard import metadata_load

from seawall.config.model import ModelConfig
from seawall.disk import regular
from seawall.errors import ArtifactError, ConfigError, UnsupportedModelError
from seawall.models.files.checkpoint import TensorHeader, first_line
from seawall.models.silence_libraries import silence_libraries

_CARD = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", _CARD)


def locate(config: ModelConfig, *, weights: bool = True) -> Path:
    """The folder of a model: the local folder that `config.id` names, or the Hub's cached snapshot.

    Args:
        config: the model.
        weights: whether to download the weights too; otherwise only configuration, tokenizer and model card.

    Raises:
        ConfigError: the folder, model or revision does not exist; a folder is given a revision; the Hub asks for a
            login, or cannot be reached.
    """
    path = Path(config.id).expanduser()
    if path.is_dir():
        if config.revision is not None:
            raise ConfigError(
                f"model {config.id} is a folder, which has no revisions",
                got=f"model.revision={config.revision}",
                expected="a Hub id with a revision, or a folder without one",
                remedy="leave out model.revision; the fingerprint of its weights says which model a folder holds",
            )
        _require_regular(path)
        return path
    if path.exists():
        raise ConfigError(
            f"model {config.id} is a file",
            expected="a folder with config.json and safetensors files, or a Hub id",
            remedy="check the path (model.id)",
        )
    if config.id.startswith((".", "~", os.sep)) or config.id.count("/") > 1 or "\\" in config.id:
        raise ConfigError(f"model folder {config.id} does not exist", remedy="check the path (model.id)")
    patterns = [*_SMALL_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if config.trust_remote_code else [])]
    try:
        with silence_libraries():
            snapshot = snapshot_download(
                config.id,
                revision=config.revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*", "consolidated*"],
            )
    except (OSError, HTTPError, HFValidationError) as error:
        raise hub_error(config, error) from error
    return Path(snapshot)


def resolved_commit(folder: Path) -> str | None:
    """The commit of a snapshot in the Hub's cache (`models--OWNER--NAME/snapshots/COMMIT`); None for other folders."""
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if is_snapshot and _COMMIT.fullmatch(folder.name) else None


def push_folder(folder: Path, repository: str, *, private: bool, without: Sequence[str] = ()) -> str:
    """Uploads a checkpoint folder to a model repository of the Hub, made if missing; returns the commit.

    Args:
        folder: with a model card.
        repository: OWNER/NAME.
        private: of a new repository; an existing public one is refused.
        without: names of files to leave out.

    Raises:
        ConfigError: no login, no permission, no connection, or a public repository.
    """
    api = HfApi()
    try:
        with silence_libraries():
            api.create_repo(repository, private=private, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise ConfigError(
                    f"the repository {repository} is public",
                    remedy="name another one as export.push_to_hub, or set export.private=false",
                )
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                ignore_patterns=list(without),
                commit_message="Repaired model and its card, by seawall",
            )
    except (OSError, HTTPError, HFValidationError) as error:
        raise ConfigError(
            f"the model could not be uploaded to {repository}",
            got=first_line(error),
            remedy="run `hf auth login` with a token that may write, and the same command again",
        ) from error
    return str(commit.oid)


def _require_regular(folder: Path) -> None:
    """Refuses devices and pipes, and links to them, among a model's files; a library would read them for ever."""
    try:
        for path in folder.iterdir():
            if path.exists() and not path.is_dir():
                regular(path)
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read", got=error.strerror, expected="a file") from error


def stated_licence(folder: Path) -> str | None:
    """The licence in the front matter of a checkpoint's model card (`apache-2.0`); None where there is none.

    An unreadable card counts as a card without a licence: a description must not make a run fail.
    """
    card = folder / _CARD
    if not card.is_file():
        return None
    try:
        data = metadata_load(str(card))
    except (ValueError, yaml.YAMLError):
        return None
    licence = (data or {}).get("license")
    return licence if isinstance(licence, str) else None


def hub_error(config: ModelConfig, error: Exception) -> ConfigError:
    """The message for a failed request to the Hub."""
    model = config.id if config.revision is None else f"{config.id} at revision {config.revision}"
    if isinstance(error, HFValidationError):
        return ConfigError(f"{model} is neither a folder nor a Hub id", remedy="name an existing folder or OWNER/NAME")
    if isinstance(error, GatedRepoError):
        return ConfigError(
            f"model {model} is gated on the Hub",
            remedy="accept the licence on the model's page, then run `hf auth login`",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"there is no local folder {config.id} and no model {model} on the Hub",
            remedy="check model.id; a private model needs `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return ConfigError(f"the Hub has no {model}", remedy="check model.revision")
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return ConfigError(
            f"there is no local folder {config.id}, the Hub cannot be reached, and its local cache lacks {model}",
            remedy="download the model on a machine with network access, and name its folder as model.id",
        )
    return ConfigError(f"model {model} could not be fetched from the Hub", got=first_line(error), remedy="try again")


def hub_headers(config: ModelConfig) -> dict[str, TensorHeader]:
    """`read_headers` of a model on the Hub; downloads the headers alone.

    Raises:
        UnsupportedModelError: the model has no safetensors weights.
        ConfigError: the Hub cannot be reached.
        ArtifactError: a header is damaged.
    """
    try:
        with silence_libraries():
            metadata = get_safetensors_metadata(config.id, revision=config.revision)
    except NotASafetensorsRepoError:
        raise UnsupportedModelError(f"model {config.id} has no safetensors weights", expected="safetensors") from None
    except SafetensorsParsingError as error:
        raise ArtifactError(f"the weights of {config.id} are damaged", got=first_line(error)) from None
    except (OSError, HTTPError) as error:
        raise hub_error(config, error) from error
    return {
        name: TensorHeader(info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }
