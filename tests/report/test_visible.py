"""Hidden and acting characters are shown; ordinary text of any script is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.report.marked import visible_markup
from seawall.visible import visible


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x00", "\u2400"),
        ("\x1b[31mred\x1b[0m", "\u241b[31mred\u241b[0m"),
        ("\x7f", "\u2421"),
        ("a\rb", "a\u240db"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("evil\u202etxt.exe", "evil⟨U+202E⟩txt.exe"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\uffff", "⟨U+FFFF⟩"),
    ],
)
def test_what_hides_is_shown(raw: str, shown: str) -> None:
    assert visible(raw) == shown


@pytest.mark.parametrize(
    "text", ["two\nlines\tand a tab", "Grüße, שלום, سلام", "می\u200cخواهم", "👩\u200d🚀", "no\u00a0break"]
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters()))
def test_any_text_can_be_encoded_and_holds_no_markup(text: str) -> None:
    visible(text).encode("utf-8")
    markup = str(visible_markup(text))
    markup.encode("utf-8")
    inner = markup.replace("</span>", "")
    assert inner.count("<") == inner.count('<span class="c')


def test_long_text_is_cut_and_says_so() -> None:
    assert str(visible_markup("ab" * 50, limit=10)) == 'ababababab<span class="cut"> … 90 more characters</span>'
