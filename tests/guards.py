"""Tiny guard models made on the spot, whose answers are known because they were put into their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import VOCABULARY, WIDTH, tiny_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_ALTERNATING = torch.tensor([1.0, -1.0] * (WIDTH // 2))


def save_writer(folder: Path, family: str, answer: str | None, *, template: str | None = None) -> Path:
    """A guard that writes `answer` and ends, whatever it is asked; None leaves it random.

    The answer is one token. The layers add nothing to the residual stream, and the output layer's row for the answer
    points along every embedding but the answer's own, along which the end token's row points.
    """
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**_SIZES))
    if answer is not None:
        tokenizer.add_tokens([answer])
        token = int(tokenizer.convert_tokens_to_ids(answer))
        _silence(model)
        with torch.no_grad():
            model.get_input_embeddings().weight[:] = _ALTERNATING
            model.get_input_embeddings().weight[token] = -_ALTERNATING
            model.get_output_embeddings().weight.zero_()
            model.get_output_embeddings().weight[token] = _ALTERNATING
            model.get_output_embeddings().weight[tokenizer.eos_token_id] = -_ALTERNATING
    return _save(folder, model, tokenizer)


def save_classifier(folder: Path, family: str = "llama", *, padding: bool = True, **overrides: Any) -> Path:
    """A guard whose label is 1 where the text's last letter is "!", and 0 elsewhere."""
    tokenizer = tiny_tokenizer()
    mark = int(tokenizer.convert_tokens_to_ids("!"))
    sizes = {**_SIZES, "id2label": {0: "fine", 1: "bad"}, "label2id": {"fine": 0, "bad": 1}}
    model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[family](**{**sizes, **overrides}))
    _silence(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = _ALTERNATING
        model.get_input_embeddings().weight[mark] = -_ALTERNATING
        model.score.weight.zero_()
        model.score.weight[0] = _ALTERNATING / WIDTH
        model.score.weight[1] = -_ALTERNATING / WIDTH
    if not padding:
        tokenizer.pad_token = None
        model.config.pad_token_id = None
    return _save(folder, model, tokenizer)


def save_biased(folder: Path, bias: list[float], names: dict[int, str], **overrides: Any) -> Path:
    """A BERT whose head says the same of every text: its weight is zero and its bias is given."""
    sizes = {name: value for name, value in _SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    sizes |= {"id2label": names, "label2id": {name: at for at, name in names.items()}}
    model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING["bert"](**{**sizes, **overrides}))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias[:] = torch.tensor(bias)
    return _save(folder, model, tiny_tokenizer())


def _silence(model: PreTrainedModel) -> None:
    """Let no layer add anything."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
