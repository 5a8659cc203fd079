"""Loads the models of judges (classifiers, generative guards), and classifies in batches. Legend: B rows, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from seawall.config.model import ModelConfig
from seawall.data.rendering import check_chat_template
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models.files.checkpoint import read_config
from seawall.models.files.hub import locate
from seawall.models.files.load import (
    load_architecture,
    load_config,
    load_weights,
    open_tokenizer,
    require_plain_weights,
)
from seawall.models.memory import unless_out_of_memory
from seawall.models.silence_libraries import silence_libraries

Row = dict[str, list[int]]
"""One tokenised text: input ids, attention mask, and the model's other inputs."""


def load_classifier(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A single-label classifier in evaluation mode on its device, and its tokenizer.

    Raises:
        ConfigError: the model, the type or the device does not exist.
        UnsupportedModelError: the model does not classify, is multi-label, or cannot be loaded.
        ArtifactError: files are damaged or incomplete, as those of a model without a trained head.
    """
    folder = locate(config)
    architecture, tokenizer = check_classifier(folder, config)
    model = load_weights(folder, architecture, config, auto=AutoModelForSequenceClassification)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def check_classifier(folder: Path, config: ModelConfig) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a single-label classifier; no weight is read.

    Raises:
        UnsupportedModelError: the model does not classify, is multi-label, or cannot be loaded.
        ArtifactError: files are damaged.
    """
    raw = read_config(folder)
    if raw.get("model_type") not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"model {config.id} does not classify texts",
            got=f"model_type {raw.get('model_type')}",
            expected="sequence classification",
            remedy="set eval.judge.format for a guard that generates its answer",
        )
    require_plain_weights(folder, raw)
    architecture = load_config(folder, config)
    if architecture.num_labels < 2 or architecture.problem_type == "multi_label_classification":
        raise UnsupportedModelError(
            f"model {config.id} is no single-label classifier",
            got=f"{architecture.num_labels} labels, problem_type {architecture.problem_type}",
            expected="two or more labels, one of which applies to a text",
        )
    return architecture, open_tokenizer(folder, config)


def class_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, batch_size: int
) -> list[list[float]]:
    """The probability of every label, for every row in order.

    Args:
        model: from `load_classifier`.
        tokenizer: its tokenizer. Without a padding token every row is a batch of its own.
        rows: tokenised texts.
        batch_size: maximum rows per forward pass; halved for the remaining batches when memory runs out.

    Raises:
        SeawallError: one row alone exceeds memory.
    """
    size = batch_size if tokenizer.pad_token_id is not None else 1
    waiting = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    probabilities: dict[int, list[float]] = {}
    while waiting:
        positions = waiting[:size]
        scores = unless_out_of_memory(partial(_forward, model, tokenizer, [rows[index] for index in positions]))
        if scores is not None:
            probabilities.update(zip(positions, scores, strict=True))
            waiting = waiting[len(positions) :]
        elif len(positions) == 1:
            raise SeawallError(
                "memory ran out in the guard",
                got=f"one text of {len(rows[positions[0]]['input_ids'])} tokens",
                remedy="lower eval.judge.max_tokens, load the guard in bfloat16, or use a larger device",
            )
        else:
            size = len(positions) // 2
    return [probabilities[index] for index in range(len(rows))]


@torch.no_grad()
def _forward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[float]]:
    with silence_libraries():
        batch: Any = tokenizer.pad(list(rows), padding=len(rows) > 1, return_tensors="pt").to(model.device)
    logits_BC = model(**batch).logits.float()
    probabilities: list[list[float]] = torch.softmax(logits_BC, dim=-1).tolist()
    return probabilities


_NO_LIMIT = 1_000_000


def load_generator(config: ModelConfig, *, chat: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode on its device, and its tokenizer.

    Args:
        config: the model.
        chat: whether its tokenizer must have a chat template.

    Raises:
        ConfigError: the model, the type or the device does not exist.
        UnsupportedModelError: the model is no causal language model, or cannot be loaded.
        DataError: the tokenizer lacks a required chat template.
        ArtifactError: files are damaged or incomplete.
    """
    folder = locate(config)
    architecture, tokenizer = check_generator(folder, config, chat=chat)
    return load_weights(folder, architecture, config), tokenizer


def check_generator(
    folder: Path, config: ModelConfig, *, chat: bool
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a causal language model; no weight is read.

    Raises:
        UnsupportedModelError: the model is no causal language model, or cannot be loaded.
        DataError: the tokenizer lacks a required chat template.
        ArtifactError: files are damaged.
    """
    architecture = load_architecture(folder, config)
    require_plain_weights(folder, read_config(folder))
    tokenizer = open_tokenizer(folder, config)
    if chat:
        check_chat_template(tokenizer)
    return architecture, tokenizer


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input of a model, in tokens; a million where neither model nor tokenizer states a limit."""
    configured = model.config.get_text_config()
    positions = getattr(configured, "max_position_embeddings", None) or _NO_LIMIT
    return int(min(positions, tokenizer.model_max_length, _NO_LIMIT))
