"""Whatever a model, a prompt file or a name holds appears as text and does nothing."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from report_examples import dropped, example, pairs, texts

from seawall.report import GroupRow, ReportInputs, render_model_card, render_report

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "<!-- ", "-->", "]]>", "<svg/onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &#x3c;",
    "javascript:alert(1)",
    "\x1b[2J\x1b[31mred",
    "a\x00b", "\u202egnp.exe\u202c", "\u2067x\u2069", "lone \ud83d surrogate", "\ufeff\u200b\U000e0041",
]  # fmt: skip


class Seen(HTMLParser):
    """Counts elements by tag, and gathers attribute names and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.names: set[str] = set()
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def small(**changes: Any) -> ReportInputs:
    return example(2, 4, **changes)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_reply_adds_no_element_and_no_attribute(text: str) -> None:
    plain, hostile = (Seen(render_report(small(samples=[texts(one)]))) for one in ("a", text))
    marks = hostile.tags.get("span", 0) - plain.tags.get("span", 0)
    assert marks >= 0
    assert {**hostile.tags, "span": 0} == {**plain.tags, "span": 0}
    assert hostile.names <= plain.names | {"title"}


@pytest.mark.parametrize("text", HOSTILE[:13])
def test_a_hostile_reply_is_readable_as_it_was_written(text: str) -> None:
    seen = Seen(render_report(small(samples=[texts(text)])))
    assert "".join(seen.text).count(text) >= 4


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_or_bidi_character_is_left_and_the_page_is_utf8(text: str) -> None:
    html = render_report(small(samples=[texts(text)]))
    html.encode("utf-8")
    left = {char for char in html if not char.isprintable() and char not in "\n\u200c\u200d\u00a0\u202f"}
    assert left == set()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_recipes_and_manifests_are_text_too(text: str) -> None:
    rows = [GroupRow(f"attack:{text}", True, small().groups[0].before), *small().groups]
    inputs = small(groups=rows, pairs=pairs(**{text: 3}), dropped=dropped(text, {text: 2}), samples=[])
    inputs = replace(
        inputs,
        summary={**inputs.summary, "model": text, "recipe": text},
        recipe={**inputs.recipe, text: text, "select": {"method": text}},
        manifest={**inputs.manifest, text: {text: [text]}},
        rounds=[{**row, text: 0.5} for row in inputs.rounds],
    )
    html = render_report(inputs)
    html.encode("utf-8")
    seen = Seen(html)
    assert seen.tags["script"] == 1
    assert seen.tags["style"] == 1
    assert "img" not in seen.tags
    assert not any(name.startswith("on") for name in seen.names)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_do_not_act_in_the_card(text: str) -> None:
    inputs = small(base_license=text)
    card = render_model_card(replace(inputs, summary={**inputs.summary, "model": text, "recipe": text}))
    card.encode("utf-8")
    body = card.split("\n---\n", 1)[1]
    for mark in ("<script", "<img", "<svg", "<style"):
        assert mark not in body.replace("\\<", "")
