"""Fixed conversations whose rendered prompts show what a model is asked: part of the fingerprint of every stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seawall.data.rendering import render, template_settings
from seawall.data.types import Message, Messages, user
from seawall.errors import SeawallError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES: tuple[Messages, ...] = (
    user("Please name a colour."),
    (Message("system", "Be brief."), *user("What is the tallest mountain in Europe?")),
    (*user("Hello!"), Message("assistant", "Hi. How can I help you?"), *user("Count from 1 to 12.")),
    user("  Ünïcödé, ﬁgures ½ 1,234.50 €\t\nDON'T  stop 日本語 Привет 🙂 x_y = {'a': [1, 2]};  "),
)
"""A request, a system prompt, several turns, and a text that normalisers and merges change."""


def rendered_probes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a template and a tokenizer make of the probes: text and token ids, or the reason of a refusal.

    The template's options and the pinned clock act on the text; merges, normaliser and added tokens act on the ids.
    """
    rows: list[Any] = []
    for messages in PROBES:
        texts = [message.content for message in messages]
        if tokenizer.chat_template:
            texts = [_rendered(tokenizer, messages, turn) for turn in (True, False)]
        rows.append([[text, _ids(tokenizer, text)] for text in texts])
    settings = template_settings(tokenizer)
    return {
        "prompts": rows,
        "end": tokenizer.eos_token_id,
        "template": settings.name,
        "options": dict(settings.options),
    }


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, turn: bool) -> str:
    try:
        return render(tokenizer, messages, add_generation_prompt=turn)
    except SeawallError as error:  # templates may refuse a system prompt
        return f"refused: {error}"


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
