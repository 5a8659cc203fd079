"""Every page in a real browser: as wide as a telephone, and accessible by the rules of axe-core."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from every_page import every_page
from test_browser import CHROMIUM, opened, probed

PAGES = every_page()
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: the browser tests need one")
OVER = """
  const page = document.documentElement;
  (parent.document.body.dataset.over ??= "") ;
  parent.document.body.dataset.over += " " + (page.scrollWidth - page.clientWidth);
"""
AXE = """
  axe.run(document, { resultTypes: ["violations"] }).then((found) => {
    const told = found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)]);
    document.body.innerHTML = "";
    document.body.dataset.axe = JSON.stringify([found.passes.length > 0, told]);
  });
"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_links_to_its_sections(name: str) -> None:
    page = PAGES[name]
    assert len(re.findall("<h1", page)) == 1
    (links,) = re.findall(r"<nav.*?</nav>", page, re.S)
    targets = re.findall('href="#([^"]+)"', links)
    assert len(targets) > 1
    for target in targets:
        assert page.count(f'id="{target}"') == 1, target


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_folder_of_the_machine(name: str) -> None:
    assert "/home/someone" not in PAGES[name]


@in_browser
@pytest.mark.parametrize("width", [390, 320])
def test_no_page_is_wider_than_a_telephone(width: int, tmp_path: Path) -> None:
    frames = [
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(probed(page, OVER))}"></iframe>'
        for page in PAGES.values()
    ]
    dom, _ = opened(f"<!doctype html><html><body>{''.join(frames)}</body></html>", tmp_path)
    (over,) = re.findall(r'data-over="([^"]*)"', dom)
    assert over.split() == ["0"] * len(PAGES)


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(name: str, tmp_path: Path) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    dom, _ = opened(probed(PAGES[name], axe.replace("</script", "<\\/script") + AXE), tmp_path)
    (found,) = re.findall(r'data-axe="([^"]*)"', dom)
    assert json.loads(html.unescape(found)) == [True, []]


@in_browser
def test_axe_finds_a_page_without_a_title(tmp_path: Path) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    broken = re.sub("<h1>.*?</h1>", "", PAGES["gene"])
    dom, _ = opened(probed(broken, axe.replace("</script", "<\\/script") + AXE), tmp_path)
    (found,) = re.findall(r'data-axe="([^"]*)"', dom)
    assert [name for name, _ in json.loads(html.unescape(found))[1]] == ["page-has-heading-one"]
