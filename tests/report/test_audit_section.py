"""Audits in the report: drawings with spoken labels, tables with the numbers, hostile text shown as text."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from report_examples import example, interval

from seawall.artifacts.audit import AuditCondition
from seawall.report import render_report
from seawall.report.audits import AuditView
from seawall.report.charts.audits import audit_chart

GROUPS = ("attack", "plain")


def _condition(name: str, series: str, amount: int | None, attack: float, plain: float) -> AuditCondition:
    return AuditCondition(name, series, amount, {"attack": interval(attack, 40, 2), "plain": interval(plain, 40)})


def by_kind(title: str = "A detour?", claim: str = "Nothing was lost.") -> AuditView:
    conditions = [_condition("original", "a", None, 0.9, 0.95), _condition("repaired model", "b", None, 0.05, 1.0)]
    labels = {"original": "original model"}
    return AuditView("routing_shortcut", title, "Both were asked.", claim, GROUPS, conditions, labels=labels)


def by_amount() -> AuditView:
    conditions = [_condition("none", "none", 0, 0.05, 1.0)]
    conditions += [_condition("these", "x", amount, 0.05, 1 - amount / 10) for amount in (1, 2, 4)]
    conditions += [_condition("others", "y", amount, 0.05, 0.975) for amount in (1, 2, 4)]
    return AuditView(
        audit="silencing",
        title="A few?",
        question="Some were masked.",
        claim="They matter.",
        groups=GROUPS,
        conditions=conditions,
        amount="experts masked",
        series={"x": "these", "y": "others"},
    )


@pytest.mark.parametrize("view", [by_kind(), by_amount()], ids=["kinds", "amounts"])
def test_drawings_say_what_they_show_and_stay_inside(view: AuditView) -> None:
    drawings = ElementTree.fromstring(f"<both>{audit_chart(view)}</both>")
    assert len(drawings) == 2
    for one in drawings:
        assert one.attrib["role"] == "img"
        assert view.claim in one.attrib["aria-label"]
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for mark in one.iter():
            for key, size in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= size, (mark.tag, mark.attrib)


def test_a_mark_lies_where_its_rate_is() -> None:
    (wide, _) = ElementTree.fromstring(f"<both>{audit_chart(by_kind())}</both>")
    circles = [float(mark.attrib["cx"]) for mark in wide.iter("circle")]
    ticks = [float(mark.attrib["x1"]) for mark in wide.iter("line") if mark.attrib["class"] == "grid"]
    zero, _, whole = ticks[:3]
    assert [(at - zero) / (whole - zero) for at in circles[:2]] == pytest.approx([0.9, 0.05], abs=1e-3)


def test_names_of_panels_fit_beside_each_other() -> None:
    groups = ("attack", "plain", "borderline", "benign", "wrapped")
    conditions = [AuditCondition("model", "a", None, {group: interval(0.5, 40) for group in groups})]
    view = AuditView("routing_shortcut", "Title", "", "Claim.", groups, conditions)
    (wide, _) = ElementTree.fromstring(f"<both>{audit_chart(view)}</both>")
    named = [one for one in wide.iter("text") if one.attrib["class"] == "label"]
    assert len(named) == len(groups)
    _, _, width, _ = map(float, wide.attrib["viewBox"].split())
    for one, following in itertools.zip_longest(named, named[1:]):
        beside = following is not None and following.attrib["y"] == one.attrib["y"]
        end = float(following.attrib["x"]) if beside else width
        assert float(one.attrib["x"]) + 9 * len(str(one.text)) <= end


def test_lines_begin_together_and_fall_as_their_rates() -> None:
    (wide, _) = ElementTree.fromstring(f"<both>{audit_chart(by_amount())}</both>")
    lines = [mark.attrib["points"].split() for mark in wide.iter("polyline")]
    assert [len(points) for points in lines] == [4, 4, 4, 4]
    heights = [float(point.partition(",")[2]) for point in lines[2]]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4
    assert lines[2][0].partition(",")[2] == lines[3][0].partition(",")[2]


def test_every_audit_is_a_section_with_its_table() -> None:
    page = render_report(example(audits=[by_kind(), by_amount()]))
    assert '<a href="#audit-routing_shortcut">Audits</a>' in page
    for view in (by_kind(), by_amount()):
        section = re.search(f'<section id="audit-{view.audit}".*?</section>', page, re.DOTALL)
        assert section is not None
        assert view.claim in section[0]
        assert section[0].count('<th scope="row">') == len(view.conditions)
        for condition in view.conditions:
            assert view.label(condition) in section[0]
            assert f'value="{condition.rates["plain"].rate}"' in section[0]
        assert "40 replies, 2 unscored" in section[0]
    assert "audit-" not in render_report(example())


def test_hostile_text_is_shown_as_text() -> None:
    page = render_report(example(audits=[by_kind(claim="</p><script>alert(1)</script>\u202e", title="<b onerror=x>")]))
    assert "<script>alert" not in page
    assert "<b onerror" not in page
    assert "\u202e" not in page
