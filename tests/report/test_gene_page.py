"""The page on a gene: drawings with spoken labels and tables with the numbers, hostile text shown as text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from seawall.artifacts.adapter import GenePoint
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.gene import Gene, GeneExperts, GeneLayer, GeneRecovery, GeneStep
from seawall.report import render_gene
from seawall.report.charts.genes import divergence_curve, layer_curves
from seawall.report.gene import GeneView

HOSTILE = "</p><script>alert(1)</script>\u202e"
LAYERS = tuple(GeneLayer(at, 0.1 * (at == 2) + 0.01, 0.01, 0.05 * at, 0.02, selected=at > 1) for at in range(5))
CURVE = (GeneStep(0, 4.5412, 0.0), GeneStep(5, 0.13, -1e-9), GeneStep(10, 0.0321, 0.012))
POINTS = {f"layers.{layer}": GenePoint(layer, (4, 4), False, f"layers.{layer}", False) for layer in (2, 3, 4)}
GENE = Gene("mixtral", "t", "a", "d", POINTS, {}, 1.0, LAYERS, CURVE)
VIEW = GeneView(
    GENE,
    "Refuses again.",
    [("family", "mixtral")],
    [("with the gene", "held-out harmful requests", Rate(0.75, 0.4, 0.93, 8))],
)


@pytest.mark.parametrize("narrow", [False, True])
def test_drawings_say_what_they_show_and_stay_inside(narrow: bool) -> None:
    said = []
    for drawn in (layer_curves(LAYERS, narrow=narrow), divergence_curve(CURVE, narrow=narrow)):
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
    rows = (
        GeneExperts(0, (0.25, 0.5, 0.25), (0.0,) * 3, norm=(2.0, 3.0, 6.0), kept=(1, 2)),
        GeneExperts(1, (), (), norm=(1.0,) * 7, kept=tuple(range(6))),
    )
    gene = replace(GENE, experts=rows, recovery=(GeneRecovery(0.25, HOSTILE, 0.0123, 0.0045),))
    page = render_gene(replace(VIEW, gene=gene), model="lab", recipe={}, manifest={"seawall": "0"})
    assert "<td>2 of 3</td><td>91.8%</td><td>75.0%</td><td>1, 2</td>" in page
    assert "<td>6 of 7</td><td>85.7%</td><td></td><td>0, 1, 2, 3, 4</td>" in page
    assert "<td>0.0123</td><td>0.0045</td>" in page
    assert "<script>" not in page


def test_hostile_text_is_shown_and_a_bare_gene_has_a_page() -> None:
    bare = GeneView(
        replace(GENE, layers=(), curve=()), HOSTILE, [(HOSTILE, HOSTILE)], [(HOSTILE, HOSTILE, VIEW.refusals[0][2])]
    )
    page = render_gene(bare, model=HOSTILE, recipe={HOSTILE: HOSTILE}, manifest={HOSTILE: HOSTILE})
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "<svg" not in page
