"""The page on a gene: drawings with spoken labels and tables with the numbers, hostile text shown as text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from seawall.artifacts.evaluation import Rate
from seawall.report import render_gene
from seawall.report.charts.genes import divergence_curve, layer_curves
from seawall.report.gene import GeneCurve, GeneExpertRow, GeneRecoveryRow, GeneRow, GeneView

HOSTILE = "</p><script>alert(1)</script>\u202e"
ROWS = [GeneRow(at, 0.1 * (at == 2) + 0.01, 0.01, 0.05 * at, 0.02, held=at > 1) for at in range(5)]
CURVE = [GeneCurve(0, 4.5412, 0.0), GeneCurve(5, 0.13, -1e-9), GeneCurve(10, 0.0321, 0.012)]
VIEW = GeneView("Refuses again.", [("family", "mixtral")], ROWS, CURVE, [("with the gene", Rate(0.75, 0.4, 0.93, 8))])


@pytest.mark.parametrize("narrow", [False, True])
def test_drawings_say_what_they_show_and_stay_inside(narrow: bool) -> None:
    said = []
    for drawn in (layer_curves(ROWS, narrow=narrow), divergence_curve(CURVE, narrow=narrow)):
        one = ElementTree.fromstring(drawn)
        said.append(one.attrib["aria-label"])
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for mark in one.iter():
            for key, size in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= size
    assert said[0].endswith("is largest in layer 2")
    assert said[1].endswith("from 4.541 to 0.032 nats")


def test_the_page_holds_the_numbers() -> None:
    page = render_gene(VIEW, model="lab", recipe={"name": "lab"}, manifest={"seawall": "0"})
    for text in (
        "Refuses again.",
        "4.5412",
        "0.1100",
        "75.0% [40.0%, 93.0%] of 8 held-out",
        "What the layer itself writes",
    ):
        assert text in page
    assert page.count(">yes</td>") == 3


def test_experts_have_a_table_where_there_are_any() -> None:
    assert "Experts" not in render_gene(VIEW, model="lab", recipe={}, manifest={"seawall": "0"})
    rows = [GeneExpertRow(0, 2, 8, 0.4567, 0.75, [5, 1]), GeneExpertRow(1, 2, 8, 0.5, None, [])]
    recovery = [GeneRecoveryRow(0.25, HOSTILE, 0.0123, 0.0045)]
    page = render_gene(
        replace(VIEW, experts=rows, recovery=recovery), model="lab", recipe={}, manifest={"seawall": "0"}
    )
    assert "<td>2 of 8</td><td>45.7%</td><td>75.0%</td><td>5, 1</td>" in page
    assert "<td>2 of 8</td><td>50.0%</td><td></td><td></td>" in page
    assert "<td>0.0123</td><td>0.0045</td>" in page
    assert "<script>" not in page


def test_hostile_text_is_shown_and_a_bare_gene_has_a_page() -> None:
    bare = replace(
        VIEW, claim=HOSTILE, facts=[(HOSTILE, HOSTILE)], layers=[], curve=[], refusals=[(HOSTILE, VIEW.refusals[0][1])]
    )
    page = render_gene(bare, model=HOSTILE, recipe={HOSTILE: HOSTILE}, manifest={HOSTILE: HOSTILE})
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "<svg" not in page
