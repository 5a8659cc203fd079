"""The parts of a reply: the thought, which no judge reads, and the answer.

The marks of a thought are those of common families (tags such as `<think>`, the channels of gpt-oss), those that the
model's chat template writes, and the block that the prompt opens. They are looked up before special tokens are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NEVER_ANSWERED = "never came out of its thought"
"""Reason of an unscored reply whose thought has no end, so that the reply has no answer."""
BEYOND_CONTEXT = "beyond the context"
"""Begins the reason of an unscored reply where the prompt, or the prompt with the reply, exceeds the context."""
NOT_A_NUMBER = "the model computes NaN or infinity"
"""Begins the reason of an unscored reply whose next token no logits tell: weights or activations beyond their type."""


@dataclass(frozen=True, slots=True)
class ReplyParts:
    """A reply, split.

    Attributes:
        answer: what the user reads; judges, profiles and choices get this part alone.
        thought: the reasoning, or all channels but the final one; empty for a model that does not reason aloud.
        unscored: why no judge may score the reply; empty where the reply has an answer.
    """

    answer: str
    thought: str = ""
    unscored: str = ""


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The marks around a thought, as one chat template writes them."""

    opening: str
    closing: str


_NAME = r"(?:[a-z]+[:_])?(?:think|thinking|thought|thoughts|reasoning)"
_MARKS = (
    rf"<\|?/?(?:begin_of_|end_of_|start_|end_)?{_NAME}\|?>",
    r"(?-i:\[/?THINK\])",
    r"◁/?think▷",
    r"<\|channel>thought|<channel\|>",
    r"<unused94>thought|<unused95>",
    r"<\|inner_prefix\|>|<\|inner_suffix\|>",
    r"\AHere is my thought process:|Here is my response:",
)
_CLOSING = re.compile(r"^(?:.{1,2}/|<\|?end_|<channel\||<unused95|<\|inner_suffix|Here is my response)", re.IGNORECASE)
_TEXTUAL_CLOSING = "Here is my response:"
_CHANNELS = re.compile(r"<\|(?:channel|start)\|>")
_PLAIN_CHANNELS = re.compile(r"\s*analysis(?P<thought>.*?)assistantfinal", re.DOTALL)
_CHANNEL_NAMES = re.compile(r"^(?:analysis|commentary|final\Z)|assistant(?:final)?\Z")
_HEADER = re.compile(
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?P<known>analysis|commentary|final)"
    r"(?:[^<\n]*(?:<\|constrain\|>[^<\n]*)?<\|message\|>)?"
    r"|(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?P<other>\w+)[^<\n]*<\|message\|>"
    r"|<\|start\|>\s*assistant\s*(?P<bare>analysis|commentary|final)?(?:<\|message\|>)?(?!\s*<\|channel\|>)"
)
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_TAG = (
    r"(?:<\|?|\[)(?=[^<>\[\]/]*(?:think|thought|reason|reflect|scratch|analy|monolog|deliberat|ponder|cot\b))"
    r"[^<>\[\]/\s|]+(?:\|?>|\])"
)
_OPENING_TAG = re.compile(_TAG, re.IGNORECASE)
_OPENED_TAG = re.compile(rf"{_TAG}(?=\s*\Z)", re.IGNORECASE)


def opened_block(turn: str, marks: ThoughtMarks | None = None) -> str:
    """The end of a prompt from the mark that opens a thought or a channel; empty where the reply begins as an answer.

    Args:
        turn: the prompt after the last message's content: the opening of the assistant's turn.
        marks: those of the chat template, if it writes any.
    """
    if _CHANNELS.search(turn):
        return turn[turn.rfind("<|start|>") :] if "<|start|>" in turn else turn[turn.rfind("<|channel|>") :]
    matches = list(_pattern(marks).finditer(turn))
    if matches:
        return "" if _closes(matches[-1].group(), marks) else turn[matches[-1].start() :]
    tag = _OPENED_TAG.search(turn)
    return "" if tag is None else turn[tag.start() :]


def paired_marks(source: str) -> ThoughtMarks | None:
    """The first pair of tags for a thought in a text, such as `<scratchpad>` and `</scratchpad>`; None without one."""
    pairs = (ThoughtMarks(tag, _closing_of(tag)) for tag in dict.fromkeys(_OPENING_TAG.findall(source)))
    return next((marks for marks in pairs if marks.closing in source), None)


def split_reply(
    text: str, *, opened: str = "", marks: ThoughtMarks | None = None, special_tokens: Sequence[str] = ()
) -> ReplyParts:
    """The parts of a reply.

    Args:
        text: the reply with its special tokens.
        opened: the result of `opened_block` for its prompt.
        marks: those of the chat template, if it writes any.
        special_tokens: texts to drop from both parts.
    """
    whole = opened + text
    spans = _answer_spans(whole, opened, marks)
    start = len(opened)
    if spans == [(start, len(whole))]:
        return ReplyParts(_without(text, special_tokens))
    thought = _pattern(marks).sub("", _without(_outside(whole, spans or [], start), special_tokens))
    thought = _CHANNEL_NAMES.sub("", thought.removesuffix(_closing_of(opened.strip())).strip()).strip()
    if spans is None:
        return ReplyParts("", thought, NEVER_ANSWERED)
    answer = "".join(whole[max(first, start) : last] for first, last in spans)
    return ReplyParts(_without(answer, special_tokens).strip(), thought)


def has_parts(text: str, *, opened: str = "", marks: ThoughtMarks | None = None) -> bool:
    """Whether a reply, with its special tokens, has any mark of a thought or a channel."""
    return _answer_spans(opened + text, opened, marks) != [(len(opened), len(opened + text))]


def _answer_spans(whole: str, opened: str, marks: ThoughtMarks | None) -> list[tuple[int, int]] | None:
    """The parts of `whole` (opened block and reply) that are the answer; None where the thought has no end."""
    if "<|channel|>" in whole or (_CHANNELS.search(opened) and _CHANNELS.search(whole[len(opened) :])):
        return _final_channel(whole, len(opened))
    plain = _PLAIN_CHANNELS.match(whole)
    if plain is not None:  # an endpoint that drops special tokens: "analysis...assistantfinal..."
        return [(plain.end(), len(whole))]
    if _CHANNELS.search(opened):
        return [(len(opened), len(whole))]
    tag = _OPENED_TAG.fullmatch(opened.rstrip())
    if tag is not None and _pattern(marks).fullmatch(tag.group()) is None:
        marks = ThoughtMarks(tag.group(), _closing_of(tag.group()))
    return _outside_marks(whole, len(opened), marks)


def _final_channel(whole: str, start: int) -> list[tuple[int, int]] | None:
    """The messages of the final channel; those without a channel where none is final (gpt-oss, harmony format)."""
    final, bare = [], []
    for header in _HEADER.finditer(whole):
        channel = header["known"] or header["other"] or header["bare"]
        end = _END_OF_MESSAGE.search(whole, header.end())
        span = (max(header.end(), start), len(whole) if end is None else end.start())
        if channel == "final":
            final.append(span)
        elif channel is None:
            bare.append(span)
    spans = final or [span for span in bare if whole[slice(*span)].strip()]
    return spans or None


def _outside_marks(whole: str, start: int, marks: ThoughtMarks | None) -> list[tuple[int, int]] | None:
    """The text outside thoughts. A closing mark without an opening one ends a thought that begins with the reply."""
    spans: list[tuple[int, int]] = []
    inside, position = False, start
    for mark in _pattern(marks).finditer(whole):
        if not _closes(mark.group(), marks):
            if not inside:
                spans.append((position, mark.start()))
            inside = True
        elif inside or mark.group() != _TEXTUAL_CLOSING:
            spans = spans if inside else []
            inside, position = False, mark.end()
    if not inside:
        spans.append((position, len(whole)))
    visible = [(first, last) for first, last in spans if whole[first:last].strip()]
    if inside:
        return visible or None
    return visible or [(len(whole), len(whole))] if spans != [(start, len(whole))] else spans


def _outside(whole: str, spans: list[tuple[int, int]], start: int) -> str:
    pieces, position = [], start
    for first, last in spans:
        pieces.append(whole[position:first])
        position = last
    return "".join([*pieces, whole[position:]])


def _pattern(marks: ThoughtMarks | None) -> re.Pattern[str]:
    own = () if marks is None else (re.escape(marks.closing), re.escape(marks.opening))
    return re.compile("|".join((*own, *_MARKS)), re.IGNORECASE)


def _closes(mark: str, marks: ThoughtMarks | None) -> bool:
    if marks is not None and mark in (marks.opening, marks.closing):
        return mark == marks.closing
    return _CLOSING.match(mark) is not None


def _closing_of(tag: str) -> str:
    """`</scratchpad>` for `<scratchpad>`, `<|/x|>` for `<|x|>`."""
    edge = 2 if tag.startswith("<|") else 1
    return f"{tag[:edge]}/{tag[edge:]}"


def _without(text: str, special_tokens: Sequence[str]) -> str:
    for token in special_tokens:
        text = text.replace(token, "")
    return text
