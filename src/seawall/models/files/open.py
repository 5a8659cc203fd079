"""A checkpoint that is opened once and passed on; each of its parts is read at first use and cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.models.files.fingerprint import rendering_fingerprint, settings_fingerprint, tokenizer_fingerprint
from seawall.models.files.hub import locate, resolved_commit, stated_licence
from seawall.models.files.load import load_model, model_folder, open_tokenizer
from seawall.models.files.rewrite import checkpoint_fingerprint
from seawall.models.files.stream import CheckpointOutline, outline


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The files of a model.

    Attributes:
        config: the model and how to load it; `id` is a folder or a Hub id, not the name of an embedded model.
    """

    config: ModelConfig

    @property
    def id(self) -> str:
        """The folder or Hub id."""
        return self.config.id

    @cached_property
    def small_files(self) -> Path:
        """The folder with configuration and tokenizer; from the Hub, without the weights.

        Raises:
            ConfigError: the model does not exist, or the Hub cannot be reached.
        """
        return locate(self.config, weights=False)

    @cached_property
    def folder(self) -> Path:
        """The folder with all files, weights included.

        Raises:
            ConfigError: the model does not exist, or the Hub cannot be reached.
        """
        return model_folder(self.config)

    @cached_property
    def outline(self) -> CheckpointOutline:
        """The outline: configuration and file headers; no weight is read."""
        return outline(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with or without a chat template."""
        return open_tokenizer(self.small_files, self.config)

    @cached_property
    def wording(self) -> str:
        """Fingerprint of the vocabulary and the chat template."""
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def rendered(self) -> str:
        """Fingerprint of the rendered probe prompts."""
        return rendering_fingerprint(self.tokenizer)

    @cached_property
    def settings(self) -> str:
        """Fingerprint of the model's configuration and of its generation settings."""
        return settings_fingerprint(self.small_files)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the stored weights, read one tensor at a time."""
        return checkpoint_fingerprint(self.outline)

    @cached_property
    def licence(self) -> str | None:
        """The licence that the model card states (`apache-2.0`); None where it states none."""
        return stated_licence(self.small_files)

    @cached_property
    def commit(self) -> str | None:
        """The commit that a model of the Hub resolved to; None for a local folder."""
        return resolved_commit(self.small_files)

    def load(
        self, *, dtype: str | None = None, as_stored: bool = False
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in evaluation mode on its device, and its tokenizer; every call loads them again.

        Args:
            dtype: overrides the configuration's.
            as_stored: whether quantised weights are taken as they are.

        Raises:
            SeawallError: as `load_model`.
        """
        config = self.config if dtype is None else self.config.model_copy(update={"dtype": dtype})
        return load_model(config, as_stored=as_stored)

    def at(self, folder: Path) -> Checkpoint:
        """The checkpoint in another folder, with the same settings."""
        return Checkpoint(self.config.model_copy(update={"id": str(folder), "revision": None}))
