"""README and docs say what is true: Python runs, commands parse, names and links exist, lines and charts are kept."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

import seawall
from commands import fresh
from places import REPOSITORY
from seawall.artifacts.evaluation import Contrast, Difference, Rate
from seawall.cli.app import app
from seawall.cli.settings import list_settings
from seawall.config.problems import key_paths
from seawall.config.recipe import Recipe
from seawall.evaluation.intervals import change_interval, exact_interval
from workbench import Workbench, write_workbench

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
PROSE = [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "CONTRIBUTING.md"]
WIDEST = 100
MOST_COLUMNS = 6
UNRUN = re.compile(r"<!-- not run: .{10,} -->\s*$")
"""Stands before a block that needs a GPU or the Hub, with the reason: such a block is compiled and not run."""
PATHS = set(key_paths(Recipe))
WRONG: tuple[type[Exception], ...] = (AssertionError, *typer.BadParameter.__bases__)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason`: the comment that says why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    reason: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            continue
        before = next((text for text in reversed(lines[:start]) if text.strip()), "")
        reason = before if UNRUN.search(before) else ""
        yield Block(page, start + 1, language, "\n".join(lines[start + 1 : number]), reason)
        start = None


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory, planted: Path, planted_run: Path) -> Workbench:
    return write_workbench(tmp_path_factory.mktemp("workbench"), planted, planted_run)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_the_python_of_a_page_runs(
    page: Path, workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a page build on each other; paths and models that it names stand in `workbench`."""
    shutil.copytree(workbench.folder, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    names: dict[str, Any] = workbench.names(page.name)
    for block in blocks(page):
        if block.language != "python":
            continue
        code = compile(workbench.substituted(block.text), f"{name(page)}:{block.line}", "exec")
        if not block.reason:
            with contextlib.redirect_stdout(sys.stderr):
                exec(code, names)


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Every `seawall ...` of a page, and whether it is whole: in a fenced block, not amid a sentence."""
    text = page.read_text(encoding="utf-8")
    fenced = [block.text for block in blocks(page) if block.language in ("", "bash", "sh", "yaml")]
    for line in "\n".join(fenced).replace("\\\n", " ").splitlines():
        match = re.match(r"\s*(?:- run: |run: )?(?:accelerate launch -m )?(seawall [^#>|]*)", line)
        if match:
            yield match.group(1).strip(), True
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"`(seawall [^`]+)`", prose):
        yield " ".join(match.group(1).split()), False


def parsed(words: list[str], *, whole: bool) -> None:
    """Follows the words down the commands; options must exist, and of a whole command also fit.

    Raises:
        AssertionError, UsageError: they do not.
    """
    command: Any = typer.main.get_command(app)
    context = command.make_context("seawall", [], resilient_parsing=True)
    path = list(words)
    while path and getattr(command, "commands", None) and not path[0].startswith("-"):
        assert path[0] in command.commands, f"no verb {path[0]}"
        command = command.commands[path.pop(0)]
    options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    for word in path:
        if re.match(r"--[a-z]", word):
            assert word.split("=")[0] in {*options, "--help", "--version"}, f"no option {word}"
    for first, second in pairwise(path):
        if first == "--set":
            key = second.split("=")[0]
            assert key in PATHS or not re.fullmatch(r"[a-z_.]+", key), f"no setting {key}"
    if whole and "--version" not in path and not getattr(command, "commands", None):
        command.make_context(" ".join(words), path, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_parse(page: Path) -> None:
    for command, whole in commands(page):
        words = shlex.split(command.replace("[RECIPE]", "RECIPE").replace("[SECTION]", "model"))[1:]
        words = [word for word in words if word != "..."]
        try:
            parsed([word.rstrip(",") for word in words], whole=whole)
        except WRONG as error:
            pytest.fail(f"{name(page)}: {command}: {error}")


def test_settings_that_pages_name_exist() -> None:
    sections = {setting.path.split(".")[0] for setting in list_settings()}
    unknown = []
    for page in PAGES:
        for match in re.finditer(r"`([a-z]+(?:\.[a-z_]+)+)(?::[^`]*|=[^`]*)?`", page.read_text(encoding="utf-8")):
            key = match.group(1)
            if key.split(".")[0] in sections - {"model", "data"} and key not in PATHS and not _is_a_file(key):
                unknown.append(f"{name(page)}: {key}")
    assert not unknown


def _is_a_file(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in {"json", "jsonl", "html", "py", "yaml", "md", "safetensors"}


def test_every_public_name_is_in_the_docs() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [public for public in seawall.__all__ if not re.search(rf"seawall\.{public}\b", text)]
    assert not missing


def test_yaml_of_the_pages_is_yaml() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml":
                assert yaml.safe_load(block.text) is not None, f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_prose_is_narrow_and_tables_have_few_columns(page: Path) -> None:
    """Headings, tables, images and tags may be wide."""
    fenced, wide = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        table = line.startswith("|")
        if table and set(line) <= set("|-: ") and line.count("|") - 1 > MOST_COLUMNS:
            wide.append(f"{number}: {line.count('|') - 1} columns")
        if not fenced and not table and len(line) > WIDEST and not line.lstrip().startswith(("#", "<", "![", "aria-")):
            wide.append(f"{number}: {len(line)} characters")
    assert not wide, name(page)


@pytest.mark.parametrize("page", [page for page in PROSE if page.parent == REPOSITORY], ids=name)
def test_links_outside_the_site_resolve(page: Path) -> None:
    """mkdocs --strict checks those between the pages of docs/."""
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        link = "".join(target)
        if link.startswith(("http", "#")):
            continue
        path, _, anchor = link.partition("#")
        file = page.parent / path
        assert file.exists(), f"{name(page)}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {link}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_table_of_families_names_what_is_there() -> None:
    text = (DOCS / "adding-a-family.md").read_text(encoding="utf-8")
    for file, test in re.findall(r"`((?:models|methods)/[\w/]+\.py)(?:::(\w+))?`", text):
        path = REPOSITORY / "tests" / file
        assert path.is_file(), file
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), test
    for file in re.findall(r"\| `((?:moe|files|hidden|lora)/\w+\.py)` \|", text):
        assert (REPOSITORY / "src/seawall/models" / file).is_file(), file


def test_charts_are_what_their_data_give() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/charts.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in (DOCS / "data").glob("*.csv"):
        used = [page for page in PAGES if f"charts/{path.stem}.svg" in page.read_text(encoding="utf-8")]
        assert used, f"no page shows {path.name}"


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_headings_stand_on_lines_of_their_own(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^.*\S #{2,3} .*$", prose, flags=re.MULTILINE)
    assert not re.findall(r"\S\n(#{1,4} .*)$", prose, flags=re.MULTILINE)


def test_numbers_of_prompts_follow_from_the_intervals() -> None:
    """Least numbers for a bound where nothing succeeds, and where nothing changes."""
    gate, capability = (" ".join((DOCS / page).read_text("utf-8").split()) for page in ("ci.md", "capability.md"))
    told = re.findall(r"(\d+) % with (\d+)", gate.partition("No success at all")[2].partition("The embedded")[0])
    assert [limit for limit, _ in told] == ["10", "5", "3", "1"]
    for limit, goals in told:
        uppers = [exact_interval(0, int(goals) - fewer)[1] for fewer in (0, 1)]
        assert uppers[0] <= int(limit) / 100 < uppers[1], f"{limit} %"
    needed = re.search(r"on a score needs (\d+) questions", gate)
    assert needed is not None
    assert f"takes {needed.group(1)} questions on which nothing changes" in capability
    highest = [change_interval(np.zeros(n), np.ones(n))[1] for n in (int(needed.group(1)), int(needed.group(1)) - 1)]
    assert highest[0] <= 0.02 < highest[1]


def test_the_shapes_of_the_summary_are_those_of_the_records() -> None:
    text = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    for word, record in (("RATE", Rate), ("CHANGE", Difference), ("CONTRAST", Contrast)):
        told = re.search(rf"^{word} = {{([^}}]*)}}", text, flags=re.MULTILINE)
        assert told is not None
        assert re.findall(r'"(\w+)"', told.group(1)) == [field.name for field in fields(record)], word


def test_decisions_name_modules_that_are_there() -> None:
    for page in (DOCS / "decisions").glob("*.md"):
        for file in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8")):
            assert any((REPOSITORY / root / file).is_file() for root in ("", "src/seawall")), f"{name(page)}: {file}"


def test_the_quickstart_ends_with_a_page(workbench: Workbench, tmp_path: Path) -> None:
    """The commands of docs/quickstart.md, word for word but for the models, which are tiny dense ones."""
    models = {name_: workbench.folder / "tuning" / part for name_, part in (("-Instruct", "model"), ("", "base"))}
    lines = [line for line, whole in commands(DOCS / "quickstart.md") if whole and "=lab" not in line]
    assert [line.split()[1] for line in lines] == ["landscape", "eval"]
    for line in lines:
        words = shlex.split(line)[1:]
        words = [str(REPOSITORY / word) if word.startswith("recipes/") else word for word in words]
        words = [str(models["-Instruct"]) if word == "Qwen/Qwen2.5-0.5B-Instruct" else word for word in words]
        for key, end in (("model.id", "-Instruct"), ("landscape.base.id", "")):
            words += [] if "--model" in words else ["--set", f"{key}={models[end]}"]
        done = fresh(*words, cwd=tmp_path)
        # Where the tiny model says nothing that can be judged, the numbers are written and the exit code is 1.
        assert done.returncode == ("nothing could be scored" in done.stderr), done.stderr
    assert (tmp_path / "runs/quickstart/landscape.html").is_file()
