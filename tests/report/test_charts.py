"""Charts draw what they are given."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup
from report_examples import example, gap_map, updates

from seawall.artifacts.evaluation import Rate
from seawall.report.charts import curves, drift, heatmap, intervals, pairs
from seawall.report.inputs import GroupRow
from seawall.report.svg import Scale, round_up, tag, ticks


def cells(drawn: Markup) -> set[tuple[int, int]]:
    found = [tuple(map(int, pair)) for pair in re.findall(r'data-cell="(\d+),(\d+)"', str(drawn))]
    assert len(found) == len(set(found))
    return {(layer, expert) for layer, expert in found}


@pytest.mark.parametrize(("layers", "experts"), [(1, 8), (15, 32), (16, 64), (48, 128)])
def test_the_map_frames_exactly_the_selected_cells(layers: int, experts: int) -> None:
    gaps, selected = gap_map(layers, experts)
    found = heatmap.heat_map(gaps, selected)
    wanted = {(layer, expert) for layer, row in enumerate(selected) for expert in row}
    assert cells(heatmap.wide(found)) == wanted
    assert cells(heatmap.narrow(found)) == wanted


def test_every_cell_tells_its_gap_and_whether_it_is_selected() -> None:
    drawn = str(heatmap.wide(heatmap.heat_map([[0.25, -0.1], [0.0, 0.04]], [[0], [1]])))
    said = re.findall(r"<title>([^<]+)</title>", drawn)
    assert said == [
        "layer 0, expert 0: +0.250, selected",
        "layer 0, expert 1: −0.100",
        "layer 1, expert 0: 0.000",
        "layer 1, expert 1: +0.040, selected",
    ]


def test_a_frame_lies_on_its_cell() -> None:
    drawn = str(heatmap.wide(heatmap.heat_map([[0.0] * 5] * 4, [[], [3], [], []])))
    cell = re.search(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*><title>layer 1, expert 3', drawn)
    frame = re.search(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*data-cell="1,3"', drawn)
    assert cell is not None
    assert frame is not None
    assert [float(cell[at]) - float(frame[at]) for at in (1, 2)] == [0.5, 0.5]


def test_shades_are_symmetric_and_grow_with_the_gap() -> None:
    found = heatmap.heat_map([[0.6, -0.6, 0.0]], [[]])
    assert [found.shade(at / 10) for at in range(-6, 7)] == [
        "n6", "n5", "n4", "n3", "n2", "n1", "z", "p1", "p2", "p3", "p4", "p5", "p6",
    ]  # fmt: skip
    assert found.shade(9.0) == "p6"


def test_the_phone_map_has_every_cell_once() -> None:
    gaps, selected = gap_map(15, 32)
    drawn = str(heatmap.narrow(heatmap.heat_map(gaps, selected)))
    paths = re.findall(r'<path d="([^"]+)"', drawn)
    assert sum(path.count("M") for path in paths) == 15 * 32


def test_a_map_without_any_gap_is_neutral() -> None:
    assert 'class="p' not in str(heatmap.wide(heatmap.heat_map([[0.0, 0.0]], [[]])))


def test_dots_and_whiskers_stand_at_their_values() -> None:
    row = GroupRow("plain", None, Rate(0.5, 0.25, 0.75, 10), Rate(1.0, 0.8, 1.0, 10))
    drawn = str(intervals.dumbbell(row))
    assert re.findall(r'<circle cx="([\d.]+)"', drawn) == ["160", "310"]
    assert '<line x1="85" y1="15" x2="235" y2="15" class="whisker">' in drawn
    assert 'aria-label="Plain refusal: before 50.0% (25.0–75.0%), after 100.0% (80.0–100.0%)"' in drawn


def test_every_update_is_a_point_of_its_phase() -> None:
    rows = updates(rounds=2, expert=5, router=3)
    time = curves.timeline(rows, 1)
    assert time == curves.Timeline(16, (8, 16), 1)
    expert, router, scores = curves.panels(rows, example().rounds[:3], time)
    assert [series.name for series in expert.series] == ["total", "refusal", "retain"]
    assert [series.name for series in router.series] == ["total"]
    assert [at for at, _ in expert.series[0].points] == [1, 2, 3, 4, 5, 9, 10, 11, 12, 13]
    assert [value for _, value in router.series[0].points] == [row["loss"] for row in rows if row["phase"] == "router"]
    assert scores.series[0].points == [(0, 0.95), (8, 0.23), (16, 0.02)]
    assert scores.is_rate


def test_a_lone_loss_part_is_not_drawn_twice() -> None:
    rows = [{"round": 1, "phase": "expert", "step": 1, "loss": 1.0, "refusal_loss": 1.0}]
    (panel,) = curves.panels(rows, [], curves.timeline(rows, 0))
    assert [series.name for series in panel.series] == ["total"]


def test_many_updates_are_thinned_to_means() -> None:
    rows = [{"round": 1, "phase": "expert", "step": at, "loss": float(at)} for at in range(1, 1001)]
    (panel,) = curves.panels(rows, [], curves.timeline(rows, 1))
    points = panel.series[0].points
    assert len(points) <= 400
    assert points[0] == (2.0, 2.0)


def test_labels_that_would_overlap_are_moved_apart_within_the_panel() -> None:
    moved = curves.spread([(90.0, 0), (95.0, 1), (99.0, 2)], 14.0, 100.0)
    heights = [at for at, _ in moved]
    assert heights == [72.0, 86.0, 100.0]
    assert curves.spread([(10.0, 0), (50.0, 1)], 14.0, 100.0) == [(10.0, 0), (50.0, 1)]


def test_bars_are_as_long_as_the_drift() -> None:
    drawn = str(drift.drift_bars([0.1, 0.05, 0.0]))
    assert re.findall(r'height="([\d.]+)"><title>|height="([\d.]+)"', drawn)
    heights = [float(one) for one in re.findall(r'class="bar" width="[\d.]+" height="([\d.]+)"', drawn)]
    assert heights == [140.0, 70.0, 0.0]


def test_pair_bars_share_one_scale() -> None:
    drawn = str(pairs.pair_bar(50, {"attack refused": 30, "unscored": 20}, 200))
    widths = [float(one) for one in re.findall(r'<rect x="[\d.]+" y="2" width="([\d.]+)"', drawn)]
    assert widths == [53.5, 31.5, 20.5]


@pytest.mark.parametrize(("value", "end"), [(0.0, 1.0), (0.011, 0.015), (0.98, 1.0), (1.0, 1.0), (37, 40)])
def test_axes_end_at_round_values(value: float, end: float) -> None:
    assert round_up(value) == pytest.approx(end)


def test_ticks_begin_at_zero_and_stay_on_the_axis() -> None:
    assert ticks(60, 4) == [0, 15, 30, 45, 60]
    assert ticks(63, 6) == [0, 15, 30, 45, 60]


def test_a_scale_without_width_maps_onto_its_middle() -> None:
    assert Scale(1, 1, 0, 10)(1) == 5


def test_elements_escape_text_and_attributes() -> None:
    made = tag("text", "<b>&\x00", class_='"x" onload="y')
    assert str(made) == '<text class="&#34;x&#34; onload=&#34;y">&lt;b&gt;&amp;\u2400</text>'
