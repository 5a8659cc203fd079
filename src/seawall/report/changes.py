"""Differences in the claims of audits."""

from __future__ import annotations

from seawall.artifacts.audit import AuditChange

_MINUS = "\u2212"


def points(change: AuditChange) -> str:
    """A difference of rates with its interval: `\u221261 [\u221267, \u221250] points`."""
    return f"{span(change.difference, change.low, change.high, sign='+')} points"


def span(middle: float, low: float, high: float, *, sign: str = "") -> str:
    """Fractions in hundredths, with an interval: `12 [3, 20]`; zero without a sign."""
    return f"{_hundredths(middle, sign)} [{_hundredths(low, sign)}, {_hundredths(high, sign)}]"


def _hundredths(value: float, sign: str) -> str:
    hundredths = round(100 * value)
    return f"{hundredths:{sign}d}".replace("-", _MINUS) if hundredths else "0"
