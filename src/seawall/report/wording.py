"""Numbers and identifiers in the reader's words, the same on pages and in the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import ATTACK, group_of, is_attack
from seawall.visible import visible


def limit_of(recipe: Mapping[str, Any]) -> int | None:
    """Maximum number of prompts of every group in a resolved recipe; None for all, and for earlier versions."""
    limit = (recipe.get("data") or {}).get("limit")
    return None if limit is None else int(limit)


_COLUMNS = {
    "generated": "Generated tokens",
    "prompt": "Prompt tokens",
    "harmful": "Harmful rate",
    "task": "Task score",
    "attack_refusal": "Attacks refused",
}
_SCORE_NAMES = {
    "loss": "total",
    "refusal_loss": "refusal",
    "retain_loss": "retain",
    "over_refusal": "over-refusal",
}
_METHODS = {
    "frequency": "by how often they are used",
    "mass": "by their gate weight",
    "sensitivity": "by how far the refusal loss moves with their gate weights",
    "random": "at random, as a control",
    "frequency_matched": "at random among experts used as often, as a control",
    "traffic_matched": "at random with the same total gate weight, as a control",
}
_EXPERT_SCORES = {
    "frequency": "how much more often it is used when an attack succeeds than when the same request, asked plainly, is "
    "refused",
    "mass": "how much more gate weight it gets when an attack succeeds than when the same request, asked plainly, is "
    "refused",
    "sensitivity": "how far the loss of refusing an attack moves with its gate weights",
}
_ABSOLUTE = re.compile(r"(?<![\w./:~<-])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>,;:()]+){2,}[/\\]?")
"""An absolute path within a text: at least two folders or names, each after a slash."""
_WHOLE = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^/\\\n:]+){2,}[/\\]?")
"""A text that is an absolute path, blanks included."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#!|~$&])")
_MINUS = "\u2212"


def percent(fraction: float, digits: int = 1) -> str:
    """`0.9333` -> `93.3%`, with a true minus, and no sign where it rounds to zero."""
    return f"{100 * fraction:z.{digits}f}%".replace("-", _MINUS)


def percent_range(low: float, high: float) -> str:
    """An interval of fractions: `86.1–97.2%`."""
    return f"{100 * low:z.1f}–{100 * high:z.1f}%".replace("-", _MINUS)


def rate_range(rate: Rate) -> str:
    """A rate with its interval: `93.3% (86.1–97.2%)`."""
    if rate.rate is None:
        return f"none scored of {rate.n}"
    return f"{percent(rate.rate)} ({percent_range(rate.low, rate.high)})"


def signed(number: float, digits: int = 1) -> str:
    """A number with its sign, a true minus, and no sign where it rounds to zero."""
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if number > 0 else _MINUS) + text


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points: `−91.7`."""
    return signed(100 * fraction)


def points_range(low: float, high: float) -> str:
    """An interval of differences in percentage points: `−95.0 to −80.0`."""
    return f"{points(low)} to {points(high)}"


def plain_name(identifier: str) -> str:
    """`nested_fiction` -> `nested fiction`; the well-known score names get their usual spelling."""
    return _SCORE_NAMES.get(identifier, identifier.replace("_", " "))


def title_name(identifier: str) -> str:
    """`nested_fiction` -> `Nested fiction`."""
    name = plain_name(identifier)
    return name[:1].upper() + name[1:]


def group_name(group: str) -> str:
    """The reader's name of an evaluation group: `attack:role_play` -> `Role play`, `borderline` -> `Over-refusal`."""
    return title_name(group.removeprefix(ATTACK)) if is_attack(group) else group_of(group).title


def audit_group_name(group: str) -> str:
    """The reader's name of a group in an audit, short enough for a narrow panel; `attack` is all families together."""
    if group in _COLUMNS:
        return _COLUMNS[group]
    return title_name(group.removeprefix(ATTACK)) if is_attack(group) else group_of(group).short


def method_name(method: str) -> str:
    """The method of selection, to follow "selected": `frequency` -> `by how often they are used`."""
    return _METHODS.get(method, f"by {plain_name(method)}")


def score_name(select: Mapping[str, Any]) -> str:
    """The score of an expert under the recipe's section `select`, to follow "each cell is one expert:"."""
    method = select.get("control_of") or select.get("method")
    return _EXPERT_SCORES.get(str(method), _EXPERT_SCORES["frequency"])


def amount(count: int, noun: str, plural: str | None = None) -> str:
    """`1 family`, `3 families`: the count in digits with the noun in the right number."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def number(value: float, digits: int = 3) -> str:
    """A measured value: fixed digits from 10^-digits up to 10^5, else scientific (`3.1e−05`); an exact zero is `0`."""
    if value == 0:
        return "0"
    if 10**-digits <= abs(value) < 1e5:
        return f"{value:z.{digits}f}".replace("-", _MINUS)
    return f"{value:.1e}".replace("-", _MINUS)


def size(count: int) -> str:
    """Bytes in binary units: `7.5 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """`8 min 12 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def without_folders(text: str) -> str:
    """The text with absolute paths cut down to their last name, `…/name`: a page that is shared names no machine."""
    if _WHOLE.fullmatch(text):
        return _last_name(text)
    return _ABSOLUTE.sub(lambda path: _last_name(path[0]), text)


def _last_name(path: str) -> str:
    return "…/" + re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def markdown(text: str) -> Markup:
    """The text escaped for Markdown, on one line."""
    return Markup(_MARKDOWN.sub(r"\\\1", " ".join(visible(text).split())))
