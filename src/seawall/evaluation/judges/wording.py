"""Normalises the quotes, contractions and case of replies, and splits their opening into clauses."""

from __future__ import annotations

import html
import re
import unicodedata

OPENING = 200
"""Clauses that begin within this number of characters belong to the opening."""

_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "´": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
_REASONING_START = re.compile(r"<(?:think|thinking|reasoning)>", re.IGNORECASE)
_REASONING_END = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|analysis|reflection|scratchpad|plan|planning|inner_monologue)"
_FIRST_THOUGHT = re.compile(
    rf"\s*(?:<(?P<tag>{_THOUGHT})>.*?</(?P=tag)>|\[(?P<name>{_THOUGHT})\].*?\[/(?P=name)\])\s*(?=\S)",
    re.IGNORECASE | re.DOTALL,
)
"""A thought between tags of any such name, with a reply after it."""
_MARKS = re.compile(
    r"\*\*|__|~~|(?<!\w)_(?=\w)|(?<=[\w.!?])_(?!\w)|^[ \t]*[#>]+[ \t]*|(?<!\w)\*(\S+?)\*(?!\w)", re.MULTILINE
)
_SPEAKER = re.compile(r"\s*(?:[a-z][\w.'-]{0,20}(?: [\w.'-]{1,12})?)\s*:\s+(?=\S)")
_OF_THOUGHT = r"(?!/?(?:\w+_)?(?:think|thought|reason|analy|reflect|scratch|plan|inner|monolog))"
_FRAME = re.compile(
    rf"(?:\[{_OF_THOUGHT}/?[a-z_]{{2,20}}\]|<{_OF_THOUGHT}[/!|]?[a-z][^<>\n]{{0,80}}>|\\[a-z]+\{{|[-*•+$|/#_~'\[({{>\s])+"
)
"""Markup before the first word: tags, bullets, emphasis, code and quotation marks, LaTeX's \\text{."""
_FENCED = re.compile(
    r"```(?:te?xt|plaintext|markdown|md|json|html|xml|yaml)?[ \t]*\n(?P<inner>.*?)\n?[ \t]*(?:```)?", re.DOTALL
)
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
    """The reply after its reasoning; None where the reasoning is unfinished, so that there is no reply.

    A closing tag alone ends reasoning that the template of the prompt opened.
    """
    first = _FIRST_THOUGHT.match(text)
    text = text[first.end() :] if first is not None else text
    closed = list(_REASONING_END.finditer(text))
    reply = text[closed[-1].end() :] if closed else text
    return None if _REASONING_START.search(reply) else reply


def plain(text: str) -> str:
    """The text in lower case, with straight quotes and expanded contractions, without emphasis, emoji and invisible
    characters. Line breaks stay, because they mark lists.
    """
    text = html.unescape(text).replace("\\'", "'")
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_QUOTES).lower()
    text = _MARKS.sub(lambda match: match.group(1) or "", text)
    text = "".join(
        " " if unicodedata.category(character) in {"So", "Sk", "Cn", "Co"} else character for character in text
    )
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    return re.sub(r"[ \t\r\f\v]+", " ", text).strip()


def fenced(reply: str) -> str | None:
    """The text of a reply that is one block between fences, of no programming language; None for any other reply."""
    block = _FENCED.fullmatch(reply.strip())
    return block["inner"] if block is not None and "```" not in block["inner"] else None


def opening_clauses(text: str) -> list[str]:
    """The clauses that begin in the opening of a normalised text, in order.

    A speaker's label ("Max:") is removed. Speech in double quotes counts only at the beginning of the reply; later
    speech belongs to a character of a story, not to the model.
    """
    text = _own_words(text)
    clauses, start = [], 0
    for match in _BREAKS.finditer(text):
        clauses.append((start, text[start : match.start()]))
        start = match.end()
    clauses.append((start, text[start:]))
    return [clause.strip() for position, clause in clauses if position < OPENING and re.search(r"\w", clause)]


def all_clauses(text: str) -> list[str]:
    """All clauses of a normalised text, without later speech, as `opening_clauses`."""
    return [clause.strip() for clause in _BREAKS.split(_own_words(text)) if re.search(r"\w", clause)]


def _own_words(text: str) -> str:
    """The text without markup and the speaker's label before it, and without the speech of others."""
    for _ in range(2):
        text = text.removeprefix(speaker(text)).lstrip()
        frame = _FRAME.match(text)
        text = text[frame.end() :] if frame is not None else text
    return text[1:] if text.startswith('"') else text[0:1] + _LATER_SPEECH.sub(" ", text[1:])


def speaker(text: str) -> str:
    """The speaker's label at the beginning of a reply, such as "assistant: "; empty without one."""
    match = _SPEAKER.match(text)
    return match.group() if match and not re.match(r"\s*(?:subject|title|note)\b", text) else ""
