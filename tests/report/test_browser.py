"""A real browser opens the page from a file: the script runs, the policy stops nothing of ours, nothing overflows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_examples import example, texts

from seawall.report import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: the browser tests need one")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
)


def opened(html: str, folder: Path, *, width: int = 1200) -> tuple[str, list[str]]:
    """The page's DOM after its script ran, and what the browser wrote to its console."""
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    profile = folder / "profile"
    profile.mkdir()
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, timeout=300, check=True)
    log = done.stderr.decode("utf-8", "replace").splitlines()
    return done.stdout.decode("utf-8"), [line for line in log if ":CONSOLE" in line]


def probed(html: str, script: str) -> str:
    """The page with a test's script after its own, and without the policy, which would refuse it."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    return html.replace("</body>", f"<script>{script}</script></body>")


def test_the_script_runs_under_the_policy_without_a_complaint(tmp_path: Path) -> None:
    dom, console = opened(render_report(example()), tmp_path)
    assert 'data-ready="yes"' in dom
    assert "24 of 40 shown" in dom
    assert console == []


def test_the_policy_stops_any_other_script(tmp_path: Path) -> None:
    html = render_report(example()).replace("</body>", "<script>document.title = 'run'</script></body>")
    dom, console = opened(html, tmp_path)
    assert "<title>run</title>" not in dom
    assert "Content Security Policy" in " ".join(console)


def test_hostile_replies_do_nothing(tmp_path: Path) -> None:
    attack = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\x1b\u202e\x00"
    dom, console = opened(probed(render_report(example(samples=[texts(attack)])), ""), tmp_path)
    assert "<title>seawall report" in dom
    assert console == []


def test_filters_and_search_narrow_the_list(tmp_path: Path) -> None:
    script = """
      const pick = (id, value, kind) => { const one = document.getElementById(id); one.value = value;
        one.dispatchEvent(new Event(kind)); };
      const count = () => document.querySelectorAll("#rows > article:not([hidden])").length;
      const seen = [count()];
      document.getElementById("f-more").click(); seen.push(count());
      pick("f-group", "plain", "change"); seen.push(count());
      pick("f-group", "", "change"); pick("f-change", "=better", "change"); seen.push(count());
      pick("f-change", "", "change"); pick("f-text", "NUMBER 7,", "input"); seen.push(count());
      pick("f-text", "no such words", "input"); seen.push(count());
      document.body.dataset.seen = seen.join(" ");
    """
    rows = example().samples
    plain = sum(row.group == "plain" for row in rows)
    better = sum(row.before.label == "complied" and row.after.label == "refused" for row in rows)
    number = sum("number 7," in row.before.response or "number 7," in row.after.response for row in rows)
    dom, console = opened(probed(render_report(example()), script), tmp_path)
    assert f'data-seen="24 40 {plain} {min(24, better)} {number} 0"' in dom
    assert console == []


@pytest.mark.parametrize("width", [500, 750, 900, 1400])
def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    script = "document.body.dataset.over = document.documentElement.scrollWidth - window.innerWidth;"
    dom, _ = opened(probed(render_report(example(16, 64)), script), tmp_path, width=width)
    (over,) = re.findall(r'data-over="(-?\d+)"', dom)
    assert int(over) <= 0
