"""The landscape's page: drawings with spoken labels, a contour where the rates are, hostile text shown as text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_examples import interval
from test_browser import CHROMIUM, opened, probed

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.landscape import BasinWidth, LandscapePoint, LandscapeResult
from seawall.report import render_landscape
from seawall.report.charts.landscape import contour, curve_chart, rate_map
from seawall.report.landscape import BasinRow, Curve, CurvePanel, LandscapeView, RateMap

HOSTILE = "</p><script>alert(1)</script>\u202e"
AMOUNTS = (-1.0, -0.5, 0.0, 1.0)


def exact(rate: float) -> Rate:
    return Rate(rate, rate, rate, 10)


def panel(label: str = "random direction 1", limit: float | None = 0.25) -> CurvePanel:
    rates = [interval(rate, 40) for rate in (0.9, 0.4, 0.05, 0.1)]
    aligned = Curve("aligned direction", "aligned", list(zip(AMOUNTS, rates, strict=True)))
    random = Curve(label, "random", [(-1.0, interval(0.2, 40)), (-0.5, None), (0.0, rates[2]), (1.0, rates[3])])
    return CurvePanel("Harmful requests answered", [aligned, random], limit=limit)


def grid(rates: list[list[float | None]], threshold: float = 0.25) -> RateMap:
    known = [[None if rate is None else exact(rate) for rate in row] for row in rates]
    return RateMap("aligned", "random", [0.0, 1.0, 2.0][: len(rates[0])], [0.0, 1.0], known, threshold)


def view(text: str = "It stays below.", **changes: Any) -> LandscapeView:
    wide = BasinWidth("aligned", -0.6, 1.0, "crossed", "grid", narrowest=0.5, widest=2.0, safety=0.8125)
    broken = BasinWidth("random-1", 0.0, 0.0, "crossed", "crossed", narrowest=0.0, widest=0.0, safety=None)
    point = LandscapePoint("origin", {}, {"harmful": interval(0.125, 40, 3)})
    made = LandscapeView(
        result=LandscapeResult("sha256:model", (), (point,), None, 0.25, 0.5, (wide, broken), text),
        question=text,
        caption=text,
        panels=[panel(text), replace(panel(text, None), title="Over-refusal")],
        map=grid([[0.0, 0.5, None], [0.25, 1.0, 0.1]]),
        basins=[BasinRow(text, "−0.6 to +1 or more", wide, 2.03), BasinRow(text, "0 to 0", broken, 1.0)],
        groups=[("harmful", "Harmful requests answered"), ("benign", "Harmless requests answered")],
        points=[(text, point)],
        facts=[(text, text)],
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    "drawn", [curve_chart([panel(), panel()]), rate_map(grid([[0.0, 0.5, None], [0.25, 1.0, 0.1]]))]
)
def test_drawings_say_what_they_show_and_stay_inside(drawn: str) -> None:
    for one in ElementTree.fromstring(f"<all>{drawn}</all>"):
        assert one.attrib["role"] == "img"
        assert one.attrib["aria-label"]
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for mark in one.iter():
            for key, size in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= size, (mark.tag, mark.attrib)


def test_a_curve_lies_where_its_rates_are_and_is_cut_where_the_model_is_broken() -> None:
    wide, _ = ElementTree.fromstring(f"<all>{curve_chart([panel()])}</all>")
    lines = {kind: [one for one in wide.iter("polyline") if one.attrib["class"] == f"line {kind}"] for kind in
             ("s0", "s1", "s2")}  # fmt: skip
    assert [len(lines[kind]) for kind in ("s0", "s1", "s2")] == [1, 0, 2]
    points = [tuple(map(float, pair.split(","))) for pair in lines["s0"][0].attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2), (x3, _) = points
    assert (x1 - x0) / (x3 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5 / 0.85, abs=1e-2)
    zero = next(one.attrib for one in wide.iter("line") if one.attrib["class"] == "axis")
    limit = next(one.attrib for one in wide.iter("line") if one.attrib["class"] == "boundary")
    assert float(zero["x1"]) == pytest.approx(x2, abs=0.1)
    assert (float(limit["y1"]) - y0) / (y1 - y0) == pytest.approx((0.9 - 0.25) / 0.5, abs=1e-2)
    said = [one.text for one in wide.iter("title")]
    assert "aligned direction, −0.5: 40.0% (26.3–55.4%)" in said
    assert len(said) == 7


def test_a_contour_runs_between_the_amounts_where_the_rate_is_the_level() -> None:
    assert contour(grid([[0.0, 1.0], [0.0, 1.0]]), 0.25) == [((0.25, 0.0), (0.25, 1.0))]
    assert contour(grid([[0.0, 0.0], [1.0, 1.0]]), 0.25) == [((1.0, 0.25), (0.0, 0.25))]
    assert contour(grid([[0.0, 0.1], [0.1, 0.2]]), 0.25) == []
    assert contour(grid([[0.0, 1.0], [0.0, None]]), 0.25) == []
    (corner,) = contour(grid([[1.0, 0.0], [0.0, 0.0]]), 0.25)
    assert {*corner} == {(0.75, 0.0), (0.0, 0.75)}


@pytest.mark.parametrize("rates", [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
def test_a_saddle_cuts_off_the_corners_above_the_level(rates: list[list[float | None]]) -> None:
    found = contour(grid(rates), 0.5)
    above = {(x, y) for y in (0, 1) for x in (0, 1) if rates[y][x] == 1.0}
    nearest = {
        min(((x, y) for x in (0, 1) for y in (0, 1)), key=lambda c: sum(abs(p[0] - c[0]) + abs(p[1] - c[1]) for p in s))
        for s in found
    }
    assert nearest == above


def test_a_cell_has_the_shade_and_the_words_of_its_rate() -> None:
    _, wide, _ = ElementTree.fromstring(f"<all>{rate_map(grid([[0.0, 0.5, None], [0.25, 1.0, 0.1]]))}</all>")
    cells = {str(cell[0].text): cell.attrib for cell in wide.iter("rect")}
    assert cells["aligned 0, random 0: 0.0% (0.0–0.0%)"]["class"] == "z"
    assert cells["aligned +1, random 0: 50.0% (50.0–50.0%)"]["class"] == "p3"
    assert cells["aligned +1, random +1: 100.0% (100.0–100.0%)"]["class"] == "p6"
    assert cells["aligned +2, random 0: the model is broken"]["class"] == "absent"
    lower, upper = (cells[f"aligned 0, random {at}"]["y"] for at in ("0: 0.0% (0.0–0.0%)", "+1: 25.0% (25.0–25.0%)"))
    assert float(lower) > float(upper)


def test_the_page_has_every_number_as_text() -> None:
    page = render_landscape(view(), model="org/model", recipe={"name": "x"}, manifest={"seed": 3})
    assert "<title>seawall landscape: org/model</title>" in page
    for text in ("≥ 1.60", "0.50 to 2.00", "≥ 3.25", "0.81", "broken everywhere", "12.5%", "40 replies, 3 unsc"):
        assert text in page
    assert page.count("<svg") == 5
    assert "<script" not in page
    without = render_landscape(view(map=None), model="m", recipe={}, manifest={})
    assert "Along two directions" not in without
    assert without.count("<svg") == 2


def test_hostile_text_is_shown_as_text() -> None:
    page = render_landscape(view(HOSTILE), model=HOSTILE, recipe={HOSTILE: HOSTILE}, manifest={HOSTILE: HOSTILE})
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("alert(1)") > 5


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: the browser tests need one")
@pytest.mark.parametrize("width", [500, 1400])
def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    script = "document.body.dataset.over = document.documentElement.scrollWidth - window.innerWidth;"
    facts = [("aligned direction", "108 tensors change, norm 20.55; from sha256:5b29725309d41d7e")]
    page = render_landscape(view(facts=facts), model="org/model", recipe={"name": "x"}, manifest={"seed": "f" * 71})
    dom, _ = opened(probed(page, script), tmp_path, width=width)
    (over,) = re.findall(r'data-over="(-?\d+)"', dom)
    assert int(over) <= 0
