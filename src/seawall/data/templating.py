"""From conversations to token ids with the model's own chat template, and the mask that a loss over replies needs.

A prompt must become the same ids in training as in generation: otherwise a repair is trained on one prompt and used
on another, and the mask falls beside the reply. Both are checked here for every example, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from seawall.data.types import Exchange, Message, Messages
from seawall.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that a loss passes over, as in PyTorch's cross-entropy."""

# Hybrid models (Qwen3, GLM-4.5 and others) otherwise think before they answer, and the reply is what is judged and
# trained here. Templates that know no such switch ignore it.
_TEMPLATE_OPTIONS = {"enable_thinking": False}

_MARKER = "q7Vx-the-reply-Kz3w"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation with its reply.

    Attributes:
        input_ids: the whole conversation.
        labels: the same ids on the reply and on the end token after it, which is the last label; -100 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt_length(self) -> int:
        """Tokens before the first label."""
        return next(at for at, label in enumerate(self.labels) if label != IGNORED)

    @property
    def response_tokens(self) -> int:
        """Tokens under the loss, the end token among them."""
        return sum(label != IGNORED for label in self.labels)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a chat template; `doctor` and loading ask this before any work is done.

    Raises:
        DataError: the tokenizer has none.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template",
            got=f"{type(tokenizer).__name__} of {tokenizer.name_or_path or 'a tokenizer without a name'}",
            expected="an instruction-tuned model with its chat_template",
            remedy="use the model's instruct version, or put chat_template.jinja into its folder",
        )


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, str] | None = None
) -> str:
    """The text that a model is given: the conversation, and the opening of the assistant's turn.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        options: what else the template takes.

    Raises:
        DataError: no chat template, or the template refuses the conversation.
    """
    return _render(tokenizer, messages, add_generation_prompt=True, options=options)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of `prompt_text`. Special tokens come from the template alone, so none is doubled.

    Raises:
        DataError: no chat template, or the template refuses the conversation.
    """
    return _ids(tokenizer, prompt_text(tokenizer, messages))


def encode_exchange(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> Encoded:
    """Token ids of a prompt with its reply, and labels on the reply and its end token only.

    Where the template leaves the assistant's turn open, the tokenizer's end-of-sequence token closes it, because that
    token is what stops generation. What a template writes after the end token is left out: nothing is learned there.

    Raises:
        DataError: no chat template; the template refuses the conversation or rewrites the reply; the prompt's ids
            are not the beginning of the whole's ids.
    """
    if not exchange.response.strip():
        raise DataError("an exchange has an empty reply", got=_shown_prompt(exchange), remedy="drop it")
    before = prompt_text(tokenizer, exchange.prompt)
    whole = _render(tokenizer, (*exchange.prompt, Message("assistant", exchange.response)), add_generation_prompt=False)
    prompt_ids, whole_ids = _ids(tokenizer, before), _ids(tokenizer, whole)
    if not whole.startswith(before) or whole_ids[: len(prompt_ids)] != prompt_ids:
        raise _not_a_prefix(tokenizer, prompt_ids, whole_ids)
    end = _end_of_reply(tokenizer, whole, len(before), exchange)
    ids = _closed(tokenizer, whole_ids, len(_common_prefix(whole_ids, _ids(tokenizer, whole[:end]))))
    return Encoded(ids, [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :])


def encode_example(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> Encoded:
    """`encode_exchange` for training: a reply that was cut does not teach its end.

    Raises:
        DataError: as `encode_exchange` does.
    """
    encoded = encode_exchange(tokenizer, exchange)
    return encoded if exchange.ended else Encoded(encoded.input_ids[:-1], encoded.labels[:-1])


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    options: Mapping[str, str] | None = None,
) -> str:
    check_chat_template(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                [message.as_dict() for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **_TEMPLATE_OPTIONS,
                **(options or {}),
            )
        )
    except TemplateError as error:
        raise DataError(
            "the chat template refuses a conversation",
            got=f"{error.message} for the roles {', '.join(message.role for message in messages)}",
            remedy="leave out the roles that this model does not know",
        ) from None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _end_of_reply(tokenizer: PreTrainedTokenizerBase, whole: str, start: int, exchange: Exchange) -> int:
    """Where the reply's text ends in the rendered conversation; templates may strip its white space.

    A short reply may also stand in what the template writes around it ("e" is in "<|end|>"), so that frame is taken
    from a rendering with a reply that stands nowhere else.
    """
    framed = _render(tokenizer, (*exchange.prompt, Message("assistant", _MARKER)), add_generation_prompt=False)
    before, _, after = framed[start:].partition(_MARKER)
    end = len(whole) - len(after)
    if whole[start + len(before) : end].strip() != exchange.response.strip() or not whole.endswith(after):
        raise DataError(
            "the chat template rewrites the reply",
            got=repr(whole[start : start + 60]),
            expected=repr(exchange.response[:60]),
            remedy="without the reply's own text the loss cannot be placed; use a template that keeps it",
        )
    return end


def _closed(tokenizer: PreTrainedTokenizerBase, ids: list[int], reply_end: int) -> list[int]:
    """`ids` up to and with the token that ends the reply: the first special one after it, else end-of-sequence."""
    enders = _special_ids(tokenizer)
    for at in range(reply_end, len(ids)):
        if ids[at] in enders:
            return ids[: at + 1]
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the chat template does not end the assistant's turn, and the tokenizer has no end-of-sequence token",
            expected="a token that stops generation",
            remedy="set eos_token in the tokenizer",
        )
    return [*ids[:reply_end], int(tokenizer.eos_token_id)]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """`all_special_ids` alone is not enough: Llama 3's end-of-turn token is only an added token marked as special."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    shorter = min(len(first), len(second))
    return next((first[:at] for at in range(shorter) if first[at] != second[at]), first[:shorter])


def _not_a_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], whole_ids: list[int]) -> DataError:
    same = len(_common_prefix(prompt_ids, whole_ids))
    return DataError(
        "with its reply, the prompt is not encoded as it is for generation, so training would see another prompt than "
        "the model gets and the loss would miss the reply",
        got=repr(tokenizer.decode(whole_ids[same : same + 8])),
        expected=f"{tokenizer.decode(prompt_ids[same : same + 8])!r} after {same} equal tokens",
        remedy="use a chat template whose generation prompt is how it opens the assistant's turn, and strip the reply",
    )


def _shown_prompt(exchange: Exchange) -> str:
    return repr(exchange.prompt[-1].content[:60])
