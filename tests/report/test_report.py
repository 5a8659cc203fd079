"""The report: its numbers are the inputs', and nothing that a model wrote can act."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from seawall.report import GroupRow, ReportInputs, SampleRow, render_model_card, render_report
from seawall.report.inputs import Interval

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\u202egnp.exe\x1b[31mred\x00\ud800 end"
VOID = {"meta", "br", "img", "input", "link", "hr"}


def inputs(reply: str = "Here is a poem about the sea.") -> ReportInputs:
    rate = {"rate": 0.9, "low": 0.8, "high": 0.95, "n": 40, "unscored": 1}
    groups = [
        GroupRow("plain", None, Interval(0.975, 0.9, 1.0, 40, 0), Interval(0.95, 0.87, 1.0, 40, 0)),
        GroupRow(
            "attack:nested_fiction",
            True,
            Interval(0.925, 0.83, 0.98, 40, 2),
            Interval(0.031, 0.0, 0.09, 40, 3),
            Interval(-0.894, -0.97, -0.8, 40, 5),
            0.001,
        ),
        GroupRow("borderline", None, Interval(0.2, 0.1, 0.3, 60, 0), Interval(0.233, 0.13, 0.34, 60, 0)),
    ]
    return ReportInputs(
        summary={
            "model": "lab",
            "recipe": "lab",
            "seconds": 312.0,
            "peak_memory_bytes": 3 * 2**30,
            "selected_experts": 3,
            "routed_experts": 24,
            "attacks": {"nested_fiction": {"seen": True, "before": rate, "after": rate}},
            "gold_answer_loss": {"before": 1.5, "after": 1.512, "n": 60},
            "parity": {"max_logit_difference": 0.0, "allowed": 0.0, "passed": True},
        },
        recipe={"seed": 0, "repair": {"parameters": "selected"}},
        manifest={"environment": {"packages": {"seawall": "0.1.0"}}, "stages": {"profile": {"state": "done"}}},
        groups=groups,
        gaps=[[0.1 * (e - 3) for e in range(8)] for _ in range(3)],
        selected=[[7], [6, 7], []],
        stability=0.81,
        kept={"nested_fiction": 40},
        dropped={"nested_fiction": {"attack refused": 8}},
        updates=[{"round": 1, "phase": "expert", "step": step, "loss": 3.0 / step} for step in range(1, 9)],
        rounds=[
            {"attack_success": rate, "plain_refusal": 1.0, "over_refusal": 0.2, "benign_refusal": 0.0}
            for rate in (0.9, 0.1)
        ],
        chosen_round=1,
        drift=[0.01, 0.02, 0.005],
        samples=[SampleRow("plain", "a goal", "user: a goal", reply, reply, "refused", "complied", "")],
    )


class Balance(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tables_hold_the_inputs() -> None:
    page = render_report(inputs())
    row = next(row for row in re.findall(r"<tr>.*?</tr>", page, re.S) if "Nested fiction" in row and "seen" in row)
    for number in ("92.5%", "3.1%", "0.0%", "9.0%", "−89.4", "0.001"):
        assert number in row
    assert "2 / 3" in row
    assert "8 attack refused" in page


def test_page_is_well_formed_and_loads_nothing() -> None:
    page = render_report(inputs(HOSTILE))
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(""", page)


def test_hostile_text_is_shown_and_does_nothing() -> None:
    page = render_report(inputs(HOSTILE))
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img" not in page
    for hidden in ("\u202e", "\x1b", "\x00", "\ud800"):
        assert hidden not in page
    assert "U+202E" in page
    page.encode("utf-8")


def test_policy_allows_just_our_style_and_script() -> None:
    page = render_report(inputs())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1].replace("&#43;", "+")


def test_heat_map_marks_exactly_the_selected_cells() -> None:
    page = render_report(inputs())
    marked = re.findall(r'picked"[^>]*><title>layer (\d+), expert (\d+)', page)
    assert [(int(layer), int(expert)) for layer, expert in marked] == [(0, 7), (1, 6), (1, 7)]


def test_model_card_is_valid_and_holds_the_numbers() -> None:
    card = render_model_card(inputs())
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    for text in ("92.5%", "3.1%", "1.500", "1.512", "seawall apply", "--revert", "licence", "bit-identical"):
        assert text in body
    full = replace(inputs(), recipe={"seed": 0, "repair": {"parameters": "full"}})
    assert "bit-identical to the base model's." not in render_model_card(full)


def test_script_runs_under_its_policy_in_a_real_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    path = tmp_path / "report.html"
    path.write_text(render_report(inputs(HOSTILE)), encoding="utf-8")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync dump-dom enable-logging=stderr virtual-time-budget=3000"
    command = [browser, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True)
    assert 'data-ready="yes"' in done.stdout
    assert "1 of 1 shown" in done.stdout
    assert "CONSOLE" not in done.stderr
