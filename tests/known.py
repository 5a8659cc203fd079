"""A rate that must be known."""

from __future__ import annotations

from seawall.artifacts.evaluation import Rate


def known(rate: Rate) -> float:
    """The rate of replies of which some were scored."""
    assert rate.rate is not None
    return rate.rate
