"""Attacks of other packages: a function from a goal to a text, or to a list of `role` and `content`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from seawall.config.plugin import is_plugin
from seawall.data.chat import check_order, messages_of
from seawall.data.files import Row, short_repr
from seawall.data.plugins import Plugin, PluginRecord, load_plugin
from seawall.data.splits import key
from seawall.data.types import Attack, Message, Messages, user

_LOADED: dict[str, Attack] = {}
"""Attacks of this process by plugin name, each of which keeps its conversations."""


def plugin_attack(name: str) -> Attack:
    """The attack of a plugin; it wraps each goal once per process.

    Raises:
        ConfigError: the plugin cannot be imported.
        DataError: at a call: the plugin fails, or returns no conversation that ends with the user.
    """
    if name not in _LOADED:
        plugin = load_plugin("attack", name)
        _LOADED[name] = cache(lambda goal: _conversation(plugin, goal))
    return _LOADED[name]


def is_loaded(name: str) -> bool:
    """Whether a family is a plugin's that was loaded."""
    return name in _LOADED


def checked_attacks(names: Sequence[str], goals: Sequence[str]) -> tuple[PluginRecord, ...]:
    """Wraps every goal by every plugin among the names, before anything else is done.

    Args:
        names: families; built-in ones are passed over.
        goals: all goals of the run.

    Returns:
        A record per plugin.

    Raises:
        ConfigError: a plugin cannot be imported.
        DataError: a plugin fails, returns no conversation, the same one for two goals, or another one at a second call.
    """
    records = []
    for name in filter(is_plugin, names):
        attack, plugin = plugin_attack(name), load_plugin("attack", name)
        _require_distinct(plugin, {goal: attack(goal) for goal in goals})
        for goal in goals[:1]:
            if _conversation(plugin, goal) != attack(goal):
                raise plugin.error(
                    "the attack is another one at a second call",
                    got=f"two conversations for {short_repr(goal)}",
                    expected="the same conversation for the same goal, so that a run can be resumed and compared",
                )
        records.append(plugin.record)
    return tuple(records)


def _require_distinct(plugin: Plugin, conversations: Mapping[str, Messages]) -> None:
    by_text: dict[Messages, str] = {}
    for goal, messages in conversations.items():
        earlier = by_text.setdefault(messages, goal)
        if key(earlier) != key(goal):
            raise plugin.error(
                "two goals have the same conversation",
                got=f"one for {short_repr(earlier)} and {short_repr(goal)}",
                expected="a conversation that asks for its goal",
            )


def _conversation(plugin: Plugin, goal: str) -> Messages:
    with plugin.running() as function:
        value = function(goal)
    where = f"{plugin.record.label}, on the goal {short_repr(goal)}"
    if isinstance(value, str):
        return user(Row({"text": value}, where, 0).text("text"))
    if not isinstance(value, list | tuple):
        raise plugin.error("no conversation", got=type(value).__name__, expected="text, or a list of role and content")
    row = Row({"messages": [_as_dict(message) for message in value]}, where, 0)
    messages = messages_of(row)
    check_order(row, messages, "user")
    return messages


def _as_dict(message: Any) -> Any:
    return message.as_dict() if isinstance(message, Message) else message
