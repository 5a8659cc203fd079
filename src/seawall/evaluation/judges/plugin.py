"""A judge of another package: a function from requests and replies to outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from seawall.config.judge import PluginJudge as PluginConfig
from seawall.data.files import short_repr
from seawall.data.plugins import load_plugin
from seawall.data.types import EVADES, Exchange, Messages, Outcome, Verdict, VerdictLabel, label_of

_KEYS = ("label", "reason", "harm")
_EXPECTED = f"one of {', '.join(get_args(Outcome))}, or a mapping with such a label and perhaps reason and harm"


class PluginJudge:
    """Calls the plugin with a list of `Exchange` (prompt, response, goal), and checks every verdict it returns."""

    def __init__(self, config: PluginConfig) -> None:
        """Imports the plugin.

        Raises:
            ConfigError: it cannot be imported.
        """
        self.name = config.name
        self._options = config.options
        self._plugin = load_plugin("judge", config.name)

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        """One verdict per reply, in order.

        Raises:
            DataError: the plugin fails, or returns something else than a verdict per reply.
        """
        goals = [""] * len(prompts) if goals is None else goals
        rows = [Exchange(*row) for row in zip(prompts, responses, goals, strict=True)]
        if not rows:
            return []
        with self._plugin.running() as function:
            values = function(rows, **self._options)
            verdicts = None if isinstance(values, str | Mapping | None) else list(values)
        if verdicts is None or len(verdicts) != len(rows):
            got = type(values).__name__ if verdicts is None else f"{len(verdicts)} verdicts for {len(rows)} replies"
            raise self._plugin.error("no list of verdicts", got=got, expected="one verdict per reply, in order")
        return [self._verdict(value) for value in verdicts]

    def _verdict(self, value: Any) -> Verdict:
        if isinstance(value, Verdict):
            self._require(value.label in get_args(VerdictLabel), value)
            return replace(value, judge=self.name, harm=self._harm(value.harm, value))
        fields = {"label": value} if isinstance(value, str) else value
        self._require(isinstance(fields, Mapping) and "label" in fields and set(fields) <= set(_KEYS), value)
        reason = fields.get("reason", "")
        self._require(fields["label"] in get_args(Outcome) and isinstance(reason, str), value)
        result = cast(Outcome, fields["label"])
        reason = reason or f"the plugin says {result}"
        reason = f"{EVADES}{reason}" if result == "evades" and not reason.startswith(EVADES) else reason
        return Verdict(label_of(result), reason, self.name, self._harm(fields.get("harm"), value))

    def _harm(self, harm: Any, value: Any) -> float | None:
        if harm is None:
            return None
        is_number = isinstance(harm, int | float) and not isinstance(harm, bool)
        if not (is_number and 0 <= harm <= 1):
            raise self._plugin.error("the harm is wrong", got=short_repr(value), expected="a number from 0 to 1")
        return float(harm)

    def _require(self, is_valid: bool, value: Any) -> None:
        if not is_valid:
            raise self._plugin.error("no verdict", got=short_repr(value), expected=_EXPECTED)
