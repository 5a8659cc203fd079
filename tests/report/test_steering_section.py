"""Steering in the report: maps and scatters with spoken labels, tables with the numbers, hostile text shown as text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from report_examples import example, interval

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.steering import SteeringCandidate, SteeringCondition, SteeringResult
from seawall.report import render_report, render_steering
from seawall.report.audits import AuditView
from seawall.report.charts.steering import layer_map, scatter
from seawall.report.steering import CandidateRow, LayerGrid, Point, Scatter, ShareRow, SteeringView

HOSTILE = "</p><script>alert(1)</script>\u202e"
POSITIONS = (-3, -2, -1)


def grid(layers: int = 6) -> LayerGrid:
    values = [[-(layer + 1) * at / 4 if layer < layers - 1 else None for at in range(3)] for layer in range(layers)]
    return LayerGrid(values, POSITIONS, chosen=(2, 2), dropped={(1, 1): "harmless KL above 0.1"})


def points(label: str = "layer 1, expert 3") -> Scatter:
    marks = [Point(label, "above", 0.12, -2.5, chosen=True), Point("layer 0, expert 1", "below", -0.01, 0.4)]
    names = {"above": "candidate", "below": "control"}
    return Scatter("Effect by routing.", "routing difference", "refusal score", series=names, points=marks, limit=0.07)


def view(text: str = "One expert steers.", **changes: Any) -> SteeringView:
    rates = {"plain": interval(0.4, 110, 2), "benign": interval(0.97, 100)}
    kls = {"as it is": None, "layer direction": 0.0432, text: 1.2}
    conditions = tuple(SteeringCondition(name, "a", rates, kl) for name, kl in kls.items())
    candidate = SteeringCandidate("expert", 1, ((1, 3),), -1, 25.0, 8, -1.25, 0.5, refused=0.2)
    made = SteeringView(
        result=SteeringResult("sha256:model", "suppress", (candidate,), {}, conditions, claim=text),
        question=text,
        facts=[("prompts", "128 and 120"), (text, text)],
        grid=grid(),
        conditions=AuditView("steering", text, text, text, ("plain", "benign"), conditions),
        side_effect=points(text),
        routing=points(text),
        routing_note="Spearman's correlation is 0.1.",
        shares=[
            ShareRow("one expert, free", AuditFigure(0.61, 0.5, 0.7), paper=0.78),
            ShareRow(text, None, paper=0.54),
        ],
        candidates=[CandidateRow(text, candidate, text)],
    )
    return replace(made, **changes)


@pytest.mark.parametrize("drawn", [layer_map(grid()), layer_map(grid(64)), scatter(points())])
def test_drawings_say_what_they_show_and_stay_inside(drawn: str) -> None:
    for one in ElementTree.fromstring(f"<all>{drawn}</all>"):
        assert one.attrib["role"] == "img"
        assert one.attrib["aria-label"]
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for mark in one.iter():
            for key, size in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= size, (mark.tag, mark.attrib)


def test_a_cell_has_the_shade_and_the_words_of_its_effect() -> None:
    _, wide, _ = ElementTree.fromstring(f"<all>{layer_map(grid())}</all>")
    cells = {str(cell[0].text): cell.attrib["class"] for cell in wide.iter("rect") if len(cell)}
    assert len(cells) == 18
    assert cells["layer 2, token −1: −1.50; chosen"] == "n4"
    assert cells["layer 4, token −1: −2.50"] == "n6"
    assert cells["layer 0, token −3: 0.00"] == "z"
    assert cells["layer 1, token −2: −0.50; harmless KL above 0.1"] == "n1 dropped"
    assert cells["layer 5, token −1: not measured"] == "absent"


def test_a_mark_lies_where_its_numbers_are() -> None:
    wide, _ = ElementTree.fromstring(f"<all>{scatter(points())}</all>")
    marks = [mark for mark in wide.iter("circle") if len(mark)]
    (left, top), (right, bottom) = ((float(m.attrib["cx"]), float(m.attrib["cy"])) for m in reversed(marks))
    lines = [mark.attrib for mark in wide.iter("line")]
    zero = next(float(one["y1"]) for one in lines if one["class"] == "axis")
    limit = next(float(one["x1"]) for one in lines if one["class"] == "boundary")
    assert left < limit < right
    assert (limit - left) / (right - left) == pytest.approx(0.08 / 0.13, abs=1e-3)
    assert top < zero < bottom
    assert (bottom - zero) / (zero - top) == pytest.approx(2.5 / 0.4, abs=1e-2)


def test_the_section_has_every_number_as_text() -> None:
    page = render_report(example(steering=view()))
    assert '<a href="#steering">Steering</a>' in page
    found = re.search(r'<section id="steering".*?</section>', page, re.DOTALL)
    assert found is not None
    for text in ("One expert steers.", "0.043", "61%", "78%", "no clear layer-level effect", "110 replies, 2 unscored"):
        assert text in found[0]
    assert found[0].count("<svg") == 9
    assert 'id="steering"' not in render_report(example())


def test_a_dense_model_has_no_scatter_of_experts() -> None:
    page = render_report(example(steering=view(routing=None, shares=(), candidates=())))
    assert "Does routing say" not in page
    assert "recovers" not in page


def test_a_page_of_its_own_needs_no_repair() -> None:
    page = render_steering(view(), model="org/model", recipe={"name": "x"}, manifest={"seed": 3})
    assert "<title>seawall steering: org/model</title>" in page
    assert "One expert steers." in page
    assert "<script" not in page


def test_hostile_text_is_shown_as_text() -> None:
    own = render_steering(view(HOSTILE), model=HOSTILE, recipe={HOSTILE: HOSTILE}, manifest={HOSTILE: HOSTILE})
    for page in (render_report(example(steering=view(HOSTILE))), own):
        assert "<script>alert" not in page
        assert "\u202e" not in page
        assert page.count("alert(1)") > 5
