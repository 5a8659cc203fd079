"""The consoles of seawall, which show untrusted names and never obey them."""

from __future__ import annotations

from typing import Any, final

from rich.console import Console
from rich.text import Text

from seawall.visible import visible_line


@final
class PlainConsole(Console):
    """A console that shows every string in one visible line, without markup, emoji codes and highlights.

    rich gives each string that it prints (messages, cells, headers and titles of tables) to `render_str`. Strings hold
    names of folders, attacks, groups and models, whose escapes and markup must not act. Styled text and text of several
    lines are `Text` objects of seawall's own words.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as visible text; options of markup, emoji and highlighting are ignored."""
        layout = {name: options[name] for name in ("style", "justify", "overflow") if name in options}
        return super().render_str(visible_line(text), markup=False, emoji=False, highlight=False, **layout)
