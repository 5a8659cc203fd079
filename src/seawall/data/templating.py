"""Encodes conversations with the model's own chat template, and masks all but the reply for the loss.

A prompt must have the same ids in training as in generation; otherwise a repair trains on another prompt than it meets
in use, and the mask misses the reply. Both are checked for every example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seawall.data.answers import ThoughtMarks, opened_block, paired_marks
from seawall.data.rendering import (
    CLOCK,
    DEFAULT_OPTIONS,
    pinned,
    render,
    require_contents,
    template_settings,
    template_source,
)
from seawall.data.types import Exchange, Message, Messages, user
from seawall.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that a loss ignores, as in PyTorch's cross-entropy."""

_MARKER = "q7Vx-the-reply-Kz3w"
_NEXT = "q7Vx-the-next-request-Kz3w"
_THOUGHT = "q7Vx-the-thought-Kz3w"
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁[^▷\s]+▷")
_THOUGHT_WORD = re.compile("/|think|thought|reason|inner", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised conversation that ends with a reply.

    Attributes:
        input_ids: ids of the conversation.
        labels: the ids of the reply and of its end token, which is the last label; -100 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first label."""
        return next(index for index, label in enumerate(self.labels) if label != IGNORED)

    @property
    def response_tokens(self) -> int:
        """Number of labelled tokens, end token included."""
        return sum(label != IGNORED for label in self.labels)


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, str] | None = None
) -> str:
    """The text of a model's prompt: the conversation, followed by the opening of the assistant's turn.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation.
        options: further variables of the template.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the conversation or drops a message.
    """
    text = render(tokenizer, messages, add_generation_prompt=True, options=options)
    require_contents(messages, text)
    return text


def self_contained_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template with its options and its pinned clock inside, for libraries that render it themselves.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    options = {**DEFAULT_OPTIONS, **template_settings(tokenizer).options}
    variables = "".join(f"{{%- set {name} = {json.dumps(value)} +%}}" for name, value in options.items())
    return variables + pinned(template_source(tokenizer), CLOCK)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of `prompt_text`. The template alone adds special tokens, so none is doubled.

    Raises:
        DataError: as `prompt_text`.
    """
    return _ids(tokenizer, prompt_text(tokenizer, messages))


def opened_by_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages, marks: ThoughtMarks | None) -> str:
    """The end of a prompt from the mark that opens a thought or a channel; empty where the reply begins as an answer.

    Raises:
        DataError: as `prompt_text`.
    """
    prompt = prompt_text(tokenizer, messages)
    closed = render(tokenizer, messages, add_generation_prompt=False)
    turn = prompt[len(closed) :] if prompt.startswith(closed) else ""
    # Some templates open the turn in any case.
    return opened_block(turn or prompt.rpartition(messages[-1].content.strip())[2], marks)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """Where the template ends the assistant's turn.

    Attributes:
        token_id: the token; None where the template writes no token of its own there.
        text: the text in place of a token; empty with a token, or where nothing ends the turn.
    """

    token_id: int | None
    text: str = ""


def turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
    """The end of the assistant's turn, by rendering a conversation; the loss is on the same token, if there is one.

    Where the last turn is left open, the mark between two turns stops generation (`<|user|>` in GLM).

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses a conversation of one exchange.
    """
    after = _after_last_turn(tokenizer)
    end = _first_end(tokenizer, after)
    if end is None and not after.strip():
        conversation = (*user("Hello"), Message("assistant", _MARKER), *user(_NEXT))
        try:
            second = render(tokenizer, conversation, add_generation_prompt=False)
        except DataError:  # a template of one exchange
            return TurnEnd(None)
        after = second.partition(_MARKER)[2].partition(_NEXT)[0]
        end = _first_end(tokenizer, after)
    if end is not None:
        return TurnEnd(end)
    line = re.match(r"\s*[^\n]*", after)
    return TurnEnd(None, line.group().rstrip() if line is not None else "")


def _after_last_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after the reply of a conversation that ends with it."""
    conversation = (*user("Hello"), Message("assistant", _MARKER))
    return render(tokenizer, conversation, add_generation_prompt=False).partition(_MARKER)[2]


def thought_marks(tokenizer: PreTrainedTokenizerBase) -> ThoughtMarks | None:
    """The tags around a thought: those that the template writes around a message's `reasoning_content`, else a pair
    of tags in the template's source or among the tokenizer's added tokens; None without any.

    Raises:
        DataError: as `turn_end`.
    """
    messages = (*user("Hello"), Message("assistant", _MARKER))
    extra = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT)
    text = render(tokenizer, messages, add_generation_prompt=False, extra=extra)
    before, thought, rest = text.partition(_THOUGHT)
    between, answer, _ = rest.partition(_MARKER)
    opening, closing = _TAG.findall(before), _TAG.findall(between)
    if thought and answer and opening and closing and _THOUGHT_WORD.search(closing[0]):
        return ThoughtMarks(opening[-1], closing[0])
    tokens = (token.content for token in tokenizer.added_tokens_decoder.values())
    return paired_marks(" ".join((template_source(tokenizer), *tokens)))


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The texts of all special tokens, longest first."""
    texts = {str(tokenizer.convert_ids_to_tokens(index)) for index in _special_ids(tokenizer)}
    return tuple(sorted(texts, key=len, reverse=True))


def encode_exchange(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> Encoded:
    """Token ids of a prompt with its reply, with labels on the reply and its end token only.

    Where the template leaves the assistant's turn open, the tokenizer's end-of-sequence token closes it, because that
    token stops generation. Text that a template adds after the end token is left out.

    Raises:
        DataError: the tokenizer has no chat template; the template refuses the conversation or rewrites the reply; or
            the ids of the conversation do not begin with those of the prompt.
    """
    if not exchange.response.strip():
        raise DataError("the reply is empty", got=f"the prompt {_short_prompt(exchange)}", remedy="remove the example")
    prompt = prompt_text(tokenizer, exchange.prompt)
    full_text = render(
        tokenizer, (*exchange.prompt, Message("assistant", exchange.response)), add_generation_prompt=False
    )
    prompt_ids, full_ids = _ids(tokenizer, prompt), _ids(tokenizer, full_text)
    if not full_text.startswith(prompt) or full_ids[: len(prompt_ids)] != prompt_ids:
        opened = opened_block(prompt.rpartition(exchange.prompt[-1].content.strip())[2])
        raise _opens_thought(opened) if opened else _not_a_prefix(tokenizer, prompt_ids, full_ids)
    end = _end_of_reply(tokenizer, full_text, len(prompt), exchange)
    ids = _closed(tokenizer, full_ids, len(_common_prefix(full_ids, _ids(tokenizer, full_text[:end]))))
    return Encoded(ids, [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :])


def encode_example(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> Encoded:
    """`encode_exchange` for training: a reply that was cut has no label on an end token.

    Raises:
        DataError: as `encode_exchange`.
    """
    encoded = encode_exchange(tokenizer, exchange)
    return encoded if exchange.ended else Encoded(encoded.input_ids[:-1], encoded.labels[:-1])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _end_of_reply(tokenizer: PreTrainedTokenizerBase, full_text: str, start: int, exchange: Exchange) -> int:
    """The end of the reply in the rendered conversation; templates may strip the reply's white space.

    A short reply can also occur in the text that the template adds around it ("e" in "<|end|>"), so that text is
    determined by rendering a marker that occurs nowhere else.
    """
    framed = render(tokenizer, (*exchange.prompt, Message("assistant", _MARKER)), add_generation_prompt=False)
    before, _, after = framed[start:].partition(_MARKER)
    end = len(full_text) - len(after)
    if full_text[start + len(before) : end].strip() != exchange.response.strip() or not full_text.endswith(after):
        raise DataError(
            "the chat template rewrites the reply",
            got=repr(full_text[start : start + 60]),
            expected=repr(exchange.response[:60]),
            remedy="use a template that keeps the reply's text; the loss is placed by it",
        )
    return end


def _closed(tokenizer: PreTrainedTokenizerBase, ids: list[int], reply_end: int) -> list[int]:
    """`ids` up to and including the reply's end token: the one that the template writes, else end-of-sequence."""
    enders = _special_ids(tokenizer) | {_first_end(tokenizer, _after_last_turn(tokenizer))}
    for index in range(reply_end, len(ids)):
        if ids[index] in enders:
            return ids[: index + 1]
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the chat template does not end the assistant's turn, and the tokenizer has no end-of-sequence token",
            expected="a token that stops generation",
            remedy="set eos_token in the tokenizer",
        )
    return [*ids[:reply_end], int(tokenizer.eos_token_id)]


def _first_end(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The first special token of a text, or the added token that begins it."""
    special = _special_ids(tokenizer) - {tokenizer.bos_token_id} | {tokenizer.eos_token_id}
    places = []
    for index, token in tokenizer.added_tokens_decoder.items():
        place = text.find(token.content) if token.content.strip() else -1
        if place >= 0 and (index in special or not text[:place].strip()):
            places.append((place, -len(token.content), int(index)))
    return min(places)[2] if places else None


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens, added ones included: Llama 3's end-of-turn token is missing in `all_special_ids`."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    shorter = min(len(first), len(second))
    return next((first[:length] for length in range(shorter) if first[length] != second[length]), first[:shorter])


def _not_a_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], full_ids: list[int]) -> DataError:
    same = len(_common_prefix(prompt_ids, full_ids))
    return DataError(
        "the prompt has other token ids with its reply than in generation, so training would see another prompt, and "
        "the loss would miss the reply",
        got=repr(tokenizer.decode(full_ids[same : same + 8])),
        expected=f"{tokenizer.decode(prompt_ids[same : same + 8])!r} after {same} equal tokens",
        remedy="use a chat template that opens the assistant's turn with its generation prompt, and strip the reply",
    )


def _opens_thought(opened: str) -> DataError:
    return DataError(
        "the chat template opens a thought before the reply, so a reply without one cannot be trained on or scored",
        got=f"a prompt that ends in {opened.strip()!r}",
        expected="a prompt that the reply follows at once",
        remedy="turn the thought off (model.template_options: {enable_thinking: false}), or use another template",
    )


def _short_prompt(exchange: Exchange) -> str:
    return repr(exchange.prompt[-1].content[:60])
