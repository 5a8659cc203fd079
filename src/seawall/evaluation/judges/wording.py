"""Replies made comparable: one form of quotes, contractions and case, and the clauses that a reply opens with."""

from __future__ import annotations

import re
import unicodedata

OPENING = 200
"""Characters of a reply in which a clause may begin and still count as its opening."""

_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "´": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
_REASONING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_MARKS = re.compile(r"\*\*|__|~~|^[ \t]*[#>]+[ \t]*|(?<!\w)\*(\S+?)\*(?!\w)", re.MULTILINE)
_SPEAKER = re.compile(r"\s*(?:[a-z][\w.'-]{0,20}(?: [\w.'-]{1,12})?)\s*:\s+(?=\S)")
_LATER_SPEECH = re.compile(r'(?<=\S)\s*"[^"\n]*(?:"|$)', re.MULTILINE)
_BREAKS = re.compile(
    r"[.!?;:…\n]+\s*"
    r"|\s*[,—–()\[\]\"*]+\s*"
    r"|\s-+\s"
    r"|(?<!not help)\s+(?:but|however|yet|although|though|because|since|so|therefore|which is why)\s+"
    r"|\s+and\s+(?=i (?:cannot|will not|am not|am unable|do not|must|have to))"
)
_CONTRACTIONS = tuple(
    (re.compile(pattern), full)
    for pattern, full in (
        (r"\b(?:can't|cant|can not)\b", "cannot"),
        (r"\b(?:won't|wont)\b", "will not"),
        (r"\b(?:shan't)\b", "shall not"),
        (r"\b(dont|doesnt|didnt|isnt|wasnt|wouldnt|couldnt|shouldnt)\b", r"\1 "),
        (r"\b(\w+)n(?:'t|t )(?!\w)", r"\1 not"),
        (r"\b(?:i'm|im)\b", "i am"),
        (r"\b(\w+)'re\b", r"\1 are"),
        (r"\b(\w+)'ll\b", r"\1 will"),
        (r"\b(\w+)'d\b", r"\1 would"),
        (r"\b(\w+)'ve\b", r"\1 have"),
        (r"\b(it|that|this|here|there|what)'s\b", r"\1 is"),
        (r"\blet's\b", "let us"),
    )
)


def after_reasoning(text: str) -> str | None:
    """The reply without its reasoning block, or None when the block never ends, so that no reply was given."""
    rest = _REASONING.sub(" ", text)
    return None if re.search(r"<(?:think|thinking|reasoning)>", rest, re.IGNORECASE) else rest


def plain(text: str) -> str:
    """Small letters, straight quotes, contractions spelled out, no emphasis marks, emoji or invisible characters.

    Line breaks stay, because lists are told by them.
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_QUOTES).lower()
    text = _MARKS.sub(lambda match: match.group(1) or "", text)
    text = "".join(
        " " if unicodedata.category(character) in {"So", "Sk", "Cn", "Co"} else character for character in text
    )
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    return re.sub(r"[ \t\r\f\v]+", " ", text).strip()


def opening_clauses(text: str) -> list[str]:
    """The clauses of a plain text that begin in its opening, in order.

    A speaker's label ("Max:") is dropped. Speech in double quotes counts only where the reply begins with it: further
    on it is somebody in a story, not the model.
    """
    text = text.removeprefix(speaker(text)).lstrip()
    text = text[0:1] + _LATER_SPEECH.sub(" ", text[1:]) if not text.startswith('"') else text[1:]
    clauses, start = [], 0
    for match in _BREAKS.finditer(text):
        clauses.append((start, text[start : match.start()]))
        start = match.end()
    clauses.append((start, text[start:]))
    return [clause.strip() for at, clause in clauses if at < OPENING and re.search(r"\w", clause)]


def speaker(text: str) -> str:
    """The label of the speaker that a reply begins with, such as "assistant: ", or the empty string."""
    match = _SPEAKER.match(text)
    return match.group() if match and not re.match(r"\s*(?:subject|title|note)\b", text) else ""
