"""How replies are decoded, and how token ids become the parts of a reply."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.answers import BEYOND_CONTEXT, NOT_A_NUMBER, ReplyParts, ThoughtMarks, has_parts, split_reply
from seawall.data.templating import TurnEnd, opened_by_prompt, special_texts, thought_marks, turn_end
from seawall.data.types import Messages

TokenIds = tuple[int, ...]
NOT_FINITE = -1
"""In place of a row's next token where the model's logits are NaN or infinite; it ends the row. No token has this id:
the argmax of NaN is token 0, which would make a broken row look like a reply."""
BatchSize = int | Literal["auto"]
"""Maximum rows per forward pass; `auto`: the number that fits in free memory."""
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model and its tokenizer."""
Batches = Generator[tuple[list[int], list[TokenIds]], None, None]
"""(positions of prompts, new tokens of each), batch by batch; a row includes its end token, if the model wrote one."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply.

    Attributes:
        answer: what the user reads: the reply after its thought, or its final channel.
        token_ids: all generated tokens, without padding and the end token.
        prompt_ids: the prompt's tokens.
        ended: whether the model ended its turn.
        thought: the reply's reasoning.
        unscored: why no judge may score the reply; empty where it has an answer.
        opened: the end of the prompt from the mark that opens a thought or a channel; empty where nothing is open.
    """

    answer: str
    token_ids: TokenIds
    prompt_ids: TokenIds
    ended: bool = True
    thought: str = ""
    unscored: str = ""
    opened: str = ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How far replies are decoded.

    Attributes:
        max_new_tokens: length limit of a reply.
        eos_ids: tokens that end a reply.
        pad_id: padding token, which is masked.
        context: maximum tokens of prompt and reply together; None without a limit.
    """

    max_new_tokens: int
    eos_ids: frozenset[int]
    pad_id: int
    context: int | None = None

    def exceeds(self, prompt: TokenIds) -> bool:
        """Whether a prompt leaves no token of the context for its reply."""
        return self.context is not None and len(prompt) >= self.context

    def room(self, prompt: TokenIds) -> int:
        """The number of tokens that a reply to this prompt may have."""
        left = self.max_new_tokens if self.context is None else self.context - len(prompt)
        return min(self.max_new_tokens, left)


class Decoder(Protocol):
    """Decodes token sequences greedily: our loop, or an engine that computes the same tokens."""

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """Decodes every prompt in one batch, in any order.

        Args:
            loaded: the model, with its current weights, and its tokenizer.
            prompts: token ids; each leaves room for a reply.
            decoding: how far.
            batch_size: maximum rows per forward pass, for a decoder with batches of fixed size.
        """
        ...


def decoding_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Decoding:
    """How replies of a model are decoded.

    Replies end at the tokenizer's end token, those of the model's generation config, and the end of turn that the chat
    template writes. Without a padding token, an end token pads.
    """
    declared = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        declared.append(turn_end(tokenizer).token_id)
    if model.generation_config is not None:
        configured = model.generation_config.eos_token_id
        declared += configured if isinstance(configured, list | tuple) else [configured]
    eos_ids = frozenset(int(token) for token in declared if token is not None)
    pad_id = tokenizer.pad_token_id
    pad = int(pad_id) if pad_id is not None else min(eos_ids, default=0)
    return Decoding(max_new_tokens, eos_ids, pad, context_length(model))


def context_length(model: PreTrainedModel) -> int | None:
    """The number of positions of a model; None where its configuration states none."""
    config = model.config.get_text_config()
    stated = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((positions for positions in stated if isinstance(positions, int) and positions > 0), None)


_WITHOUT_EFFECT: tuple[object, ...] = (None, 0, 1, [], {})
_CHANGES_GREEDY = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "num_beams",
)
"""Settings of a generation config that choose other tokens than the likeliest, also without sampling."""


def greedy_notice(model: PreTrainedModel) -> str | None:
    """One line where the model's generation config asks for more than the likeliest token; None without such a setting.

    Replies are measured without these settings. Servers apply them unless a request or an option says otherwise.
    """
    config = model.generation_config
    values = {name: getattr(config, name, None) for name in _CHANGES_GREEDY}
    changes = [f"{name}={value}" for name, value in values.items() if value not in _WITHOUT_EFFECT]
    if not changes:
        return None
    return (
        f"replies are the likeliest tokens: {', '.join(changes)} of the model's generation config is left out, "
        "which servers apply unless told otherwise"
    )


class ReplyReader:
    """Splits token ids into thought and answer, while the special tokens that mark the thought are still there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decoding: Decoding | None = None) -> None:
        """Reads the marks and the end of turn of the tokenizer's chat template, if it has one.

        Args:
            tokenizer: of the model.
            decoding: of the replies; None only splits.
        """
        chat = bool(tokenizer.chat_template)
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._marks: ThoughtMarks | None = thought_marks(tokenizer) if chat else None
        self._end = turn_end(tokenizer) if chat else TurnEnd(None)
        self._special = special_texts(tokenizer)

    def opened(self, prompt: Messages) -> str:
        """The end of a rendered prompt from the mark that opens a thought or a channel.

        Raises:
            DataError: as `seawall.data.templating.prompt_text`.
        """
        return opened_by_prompt(self._tokenizer, prompt, self._marks)

    def parts(self, ids: TokenIds, opened: str) -> ReplyParts:
        """The parts of a reply of these tokens."""
        raw = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        if has_parts(raw, opened=opened, marks=self._marks):
            return split_reply(raw, opened=opened, marks=self._marks, special_tokens=self._special)
        return ReplyParts(str(self._tokenizer.decode(list(ids), skip_special_tokens=True)))

    def completion(self, prompt_ids: TokenIds, row: TokenIds, opened: str) -> Completion:
        """The completion of a prompt.

        Args:
            prompt_ids: the prompt.
            row: the new tokens, with the end token if the model wrote one.
            opened: the result of `opened` for the prompt.
        """
        assert self._decoding is not None
        if row[-1] == NOT_FINITE:
            reason = f"{NOT_A_NUMBER} after {len(row) - 1} tokens of the reply"
            return Completion("", row[:-1], prompt_ids, ended=False, unscored=reason, opened=opened)
        ended = row[-1] in self._decoding.eos_ids
        ids = self._until_end(row[:-1] if ended else row)
        ended = ended or len(ids) < len(row)
        parts = self.parts(ids, opened)
        answer, unscored = parts.answer, parts.unscored
        if not ended and self._decoding.room(prompt_ids) < self._decoding.max_new_tokens:
            limit = self._decoding.context
            unscored = f"{BEYOND_CONTEXT}: {len(prompt_ids)} tokens with a reply that does not end within {limit}"
            answer = ""
        return Completion(answer, ids, prompt_ids, ended, parts.thought, unscored, opened)

    def overlong(self, prompt_ids: TokenIds) -> Completion:
        """The completion of a prompt that leaves no room for a reply: unscored."""
        assert self._decoding is not None
        reason = f"{BEYOND_CONTEXT}: {len(prompt_ids)} tokens, and the model reads {self._decoding.context}"
        return Completion("", (), prompt_ids, ended=False, unscored=reason)

    def cut(self, completion: Completion, length: int) -> ReplyParts:
        """The parts of a reply after its first `length` tokens."""
        return self.parts(completion.token_ids[:length], completion.opened)

    def _until_end(self, ids: TokenIds) -> TokenIds:
        """The tokens before the text that ends the turn, for templates that end it by no token."""
        end = self._end.text
        if not end or end not in self._text(ids):
            return ids
        length = len(ids)
        while end in self._text(ids[:length]):
            length -= 1
        # The tokens that begin the end's text are part of it.
        size = self._text(ids).index(end)
        while len(self._text(ids[:length])) > size:
            length -= 1
        return ids[:length]

    def _text(self, ids: TokenIds) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
