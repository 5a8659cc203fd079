"""Attacks of other packages: a function from a goal to a text, or to a list of `role` and `content`.

A list of user turns alone, after an optional system message, is a live attack: the model answers each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from seawall.config.plugin import is_plugin
from seawall.data.chat import check_order, messages_of
from seawall.data.files import Row, short_repr
from seawall.data.plugins import Plugin, PluginRecord, load_plugin
from seawall.data.splits import key
from seawall.data.types import Attack, Message, Messages, user


@dataclass(frozen=True, slots=True)
class WrappedGoal:
    """A goal as a plugin wraps it.

    Attributes:
        opening: the conversation up to where the model answers first.
        turns: further user turns of a live attack, each asked after the model's own reply; empty for a fixed attack.
    """

    opening: Messages
    turns: tuple[str, ...] = ()


_LOADED: dict[str, Callable[[str], WrappedGoal]] = {}
"""Attacks of this process by plugin name, each of which keeps its conversations."""
_LIVE: set[str] = set()
"""Those that made a live conversation of some goal."""


def plugin_attack(name: str) -> Attack:
    """The attack of a plugin; it wraps each goal once per process. Of a live attack it gives the first turn.

    Raises:
        ConfigError: the plugin cannot be imported.
        DataError: at a call: the plugin fails, or returns no conversation that ends with the user.
    """
    wrap = _loaded(name)
    return lambda goal: wrap(goal).opening


def plugin_turns(name: str, goal: str) -> tuple[str, ...]:
    """The user's further turns in a live attack of a loaded plugin; empty for a fixed one, and for other families."""
    return _LOADED[name](goal).turns if name in _LOADED else ()


def is_loaded(name: str) -> bool:
    """Whether a family is a plugin's that was loaded."""
    return name in _LOADED


def is_live(name: str) -> bool:
    """Whether a loaded plugin made a live conversation of some goal."""
    return name in _LIVE


def _loaded(name: str) -> Callable[[str], WrappedGoal]:
    if name not in _LOADED:
        plugin = load_plugin("attack", name)
        _LOADED[name] = cache(lambda goal: _conversation(plugin, goal))
    return _LOADED[name]


def checked_attacks(
    names: Sequence[str], goals: Sequence[str], *, trained_on: Collection[str] = ()
) -> tuple[PluginRecord, ...]:
    """Wraps every goal by every plugin among the names, before anything else is done.

    Args:
        names: families; built-in ones are passed over.
        goals: all goals of the run.
        trained_on: the families of a repair, whose conversations may not depend on the model.

    Returns:
        A record per plugin.

    Raises:
        ConfigError: a plugin cannot be imported.
        DataError: a plugin fails, returns no conversation, the same one for two goals, or another one at a second
            call; a family of the repair is live.
    """
    records = []
    for name in filter(is_plugin, names):
        wrap, plugin = _loaded(name), load_plugin("attack", name)
        wrapped = {goal: wrap(goal) for goal in goals}
        _require_distinct(plugin, wrapped)
        if name in trained_on and is_live(name):
            raise plugin.error(
                "a live attack is among data.attacks_seen",
                expected="it in attacks_unseen: profile and repair need prompts that do not depend on the model",
            )
        for goal in goals[:1]:
            if _conversation(plugin, goal) != wrapped[goal]:
                raise plugin.error(
                    "the attack is another one at a second call",
                    got=f"two conversations for {short_repr(goal)}",
                    expected="the same conversation for the same goal, so that a run can be resumed and compared",
                )
        records.append(plugin.record)
    return tuple(records)


def _require_distinct(plugin: Plugin, conversations: Mapping[str, WrappedGoal]) -> None:
    goals: dict[WrappedGoal, str] = {}
    for goal, wrapped in conversations.items():
        earlier = goals.setdefault(wrapped, goal)
        if key(earlier) != key(goal):
            raise plugin.error(
                "two goals have the same conversation",
                got=f"one for {short_repr(earlier)} and {short_repr(goal)}",
                expected="a conversation that asks for its goal",
            )


def _conversation(plugin: Plugin, goal: str) -> WrappedGoal:
    with plugin.running() as function:
        value = function(goal)
    where = f"{plugin.record.label}, on the goal {short_repr(goal)}"
    if isinstance(value, str):
        return WrappedGoal(user(Row({"text": value}, where, 0).text("text")))
    if not isinstance(value, list | tuple):
        raise plugin.error("no conversation", got=type(value).__name__, expected="text, or a list of role and content")
    row = Row({"messages": [_as_dict(message) for message in value]}, where, 0)
    messages = messages_of(row)
    first = 1 if messages[0].role == "system" else 0
    turns = messages[first:]
    if len(turns) > 1 and all(message.role == "user" for message in turns):
        _LIVE.add(plugin.record.name)
        return WrappedGoal(messages[: first + 1], tuple(message.content for message in turns[1:]))
    check_order(row, messages, "user")
    return WrappedGoal(messages)


def _as_dict(message: Any) -> Any:
    return message.as_dict() if isinstance(message, Message) else message
