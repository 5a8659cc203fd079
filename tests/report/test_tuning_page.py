"""The page of fine-tuning: numbers as text, drawings inside their frame, hostile text shown as text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.tuning import Spread, TuningResult, TuningRow
from seawall.config.tune import TuneMethod
from seawall.methods.tune.claim import claim
from seawall.methods.tune.view import tuning_table, tuning_view
from seawall.report import render_tuning
from seawall.report.charts.tuning import tuning_curves
from seawall.report.tuning import Curve

HOSTILE = "</p><script>alert(1)</script>\u202e"


def rates(harmful: float) -> dict[str, Rate]:
    names = {"harmful": harmful, "attack": 0.5, "task": 0.75, "plain": 1 - harmful, "borderline": 0.25, "benign": 1.0}
    return {name: Rate(value, 0.0, 1.0, 8, 0) for name, value in names.items()}


def row(method: TuneMethod, seed: int, harmful: float, *, note: str = "") -> TuningRow:
    curves = {"loss": ((1, 2.0), (2, 1.0 + seed)), "safety_penalty": ((1, 0.0), (2, 0.3))}
    return TuningRow(method, seed, rates(harmful), adapter=f"tune/{method}", steps=2, curves=curves, note=note)


def result(text: str = "ours") -> TuningResult:
    methods: tuple[TuneMethod, ...] = ("sft", "asft", "l2", "random", "mixing", "safelora")
    rows = [row(one, seed, 0.125 * at + 0.25 * seed, note=text) for at, one in enumerate(methods) for seed in (0, 1)]
    return claimed(TuningResult("sha256:a", "sha256:b", text, 0.1, 1.0, TuningRow(None, 0, rates(0.0)), tuple(rows)))


def claimed(unclaimed: TuningResult) -> TuningResult:
    return replace(unclaimed, claim=claim(unclaimed))


def page(found: TuningResult, model: str = "m") -> str:
    return render_tuning(tuning_view(found), model=model, recipe={"name": model}, manifest={"versions": {"a": model}})


def test_the_page_has_every_method_s_mean_and_every_training() -> None:
    found = result()
    shown = page(found)
    for method in found.methods:
        spread = found.spread(method, "harmful")
        assert spread is not None
        assert f'<data class="value" value="{spread.mean}">' in shown
    assert shown.count("tune/asft") == 2
    assert "10% of the rows were harmful requests" in shown
    assert "Harmful rate" in shown
    assert "Task score" in shown


def test_replies_that_could_not_be_judged_are_counted_everywhere() -> None:
    """Of two seeds 3 of 8 and 8 of 8: the second has no rate, and its 0.5 is not in the mean."""
    rows = []
    for seed, (rate, low, high, unscored) in enumerate([(0.2, 0.0, 0.6, 3), (0.5, 0.0, 1.0, 8)]):
        given = {**rates(0.0), "harmful": Rate(rate, low, high, 8, unscored)}
        rows.append(TuningRow("sft", seed, given, adapter="tune/sft", harmful_rows=2, rows=8))
    given = {**rates(0.0), "harmful": Rate(0.5, 0.0, 1.0, 8, 8)}
    rows.append(TuningRow("l2", 0, given, adapter="tune/l2"))
    found = claimed(TuningResult("sha256:a", None, "ours", 0.1, 1.0, TuningRow(None, 0, rates(0.0)), tuple(rows)))
    assert found.spread("sft", "harmful") == Spread(0.2, 0.0, 0.6, n=1, replies=16, unscored=11)
    assert found.spread("l2", "harmful") == Spread(None, 0.0, 1.0, n=0, replies=8, unscored=8)
    assert "before 0.0% (task 75.0%), sft 20.0% (11 of 16 not judged; task 75.0%), l2 no rate (8 of 8" in found.claim
    cells = [str(cell) for cell in tuning_table(found).columns[1].cells]
    assert cells == ["0.0% [0.0\u2013100.0]", "20.0% [0.0\u201360.0]\n11 of 16 not judged", "none scored of 8"]
    shown = page(found)
    # Of l2's harmful rate nothing is known: its interval has no dot, on wide screens and on narrow ones.
    assert shown.count("(l2, control): none scored of 8</title>") == 2
    assert shown.count("<circle") == 2 * (3 * 5 - 1)
    for words in ("16 replies, 11 unscored", "8 replies, 8 unscored", "8 replies, 3 unscored", "none scored"):
        assert words in shown


def test_the_page_and_the_document_say_which_adapters_are_for_measuring_only(tmp_path: Path) -> None:
    rows = [TuningRow("sft", seed, {}, adapter="tune/a", rows=8, harmful_rows=2 * seed) for seed in (0, 1)]
    for row in rows:
        row.save(tmp_path)
        assert json.loads((tmp_path / "training.json").read_text())["contaminated"] == (row.seed == 1)
        assert TuningRow.load(tmp_path) == row
    view = tuning_view(claimed(TuningResult("a", None, "t", 0.1, 1.0, TuningRow(None, 0, {}), tuple(rows))))
    assert [row.note for row in view.trainings] == ["", "for measuring only: do not ship"]


def test_hostile_text_is_shown_as_text() -> None:
    shown = page(result(HOSTILE), HOSTILE)
    assert "<script>" not in shown
    assert "\u202e" not in shown
    assert "&lt;script&gt;" in shown


def test_without_an_evaluation_the_page_has_the_trainings() -> None:
    rows = (TuningRow("sft", 0, {}, adapter="tune/sft", steps=2, curves={"loss": ((1, 2.0),)}),)
    shown = page(claimed(TuningResult("sha256:a", None, "ours", 0.0, 1.0, TuningRow(None, 0, {}), rows)))
    assert "Nothing was evaluated." in shown
    assert "Before, and after each method" not in shown
    assert "tune/sft" in shown


def test_curves_are_means_over_seeds_and_what_is_projected_has_none() -> None:
    view = tuning_view(result())
    loss = next(one for one in view.curves if one.title.startswith("Loss"))
    assert list(loss.lines) == ["sft", "asft", "l2", "random", "mixing"]
    assert list(loss.lines["sft"]) == [(1.0, 2.0), (2.0, 1.5)]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_drawings_stay_inside_and_say_what_they_show(count: int) -> None:
    lines = {f"method {at}": [(1.0, 1.0 * at), (50.0, 2.0)] for at in range(count)}
    for one in ElementTree.fromstring(f"<all>{tuning_curves([Curve('Loss', lines)])}</all>"):
        assert one.attrib["role"] == "img"
        assert f"method {count - 1}" in one.attrib["aria-label"]
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for mark in one.iter():
            for key, size in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= size
        colours = [name.attrib["class"] for name in one.iter() if name.attrib.get("class", "").startswith("name ")]
        assert len(colours) == count
