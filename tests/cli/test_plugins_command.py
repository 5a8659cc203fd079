"""A judge, an attack and a source of a separate package, from the command line to the numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from commands import ENVIRONMENT, fresh
from places import TESTS
from seawall.cli.common import open_target
from seawall.config import load_recipe
from seawall.errors import ConfigError
from seawall.runs.folder import RunFolder
from seawall.runs.sealed import seal_files
from seawall.shell.job import recipe_of_run

SETTINGS = (
    "data.harmful={kind: plugin, name: seawall-verse/requests}",
    "data.attack_file=null",
    "data.attacks_seen=[seawall-verse/in_verse]",
    "data.test_benign=2",
    "data.test_borderline=2",
    "eval.judge={kind: plugin, name: seawall-verse/by_first_word}",
    "eval.gold=false",
    "eval.max_new_tokens=4",
    "eval.bootstrap=100",
)


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def call(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in an environment in which the package is installed."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT.get('PYTHONPATH', '')}:{package}"}
    return fresh(*arguments, environment=environment)


def test_an_evaluation_with_a_package_that_changes(planted: Path, tmp_path: Path) -> None:
    package, folder = tmp_path / "installed", tmp_path / "out"
    shutil.copytree(TESTS / "small_package", package)
    words: list[str | Path] = ["eval", planted, "--model", planted.parent / "model", "-o", folder, *sets(*SETTINGS)]
    done = call(package, *words, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["attacks"]["seawall-verse/in_verse"]["n"] == 4
    assert summary["plain_refusal"]["n"] == 4
    rows = [json.loads(line) for line in (folder / "samples" / "eval.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows if row["response"]} == {"first word"}
    attacks = {row["prompt"][0]["content"] for row in rows if row["group"].startswith("attack:")}
    assert all(text.startswith("Story time! Sing it as a verse: Steal the ") for text in attacks)
    plugins = json.loads((folder / "manifest.json").read_text())["plugins"]
    assert {label.partition(" ")[0] for label in plugins} == {"attack", "judge", "source"}
    module = package / "seawall_verse" / "__init__.py"
    module.write_text(module.read_text().replace('"first word"', '"the first word"'))
    done = call(package, *words)
    assert done.returncode == 0, done.stderr
    assert "judge plugin seawall-verse/by_first_word has changed since this run was begun" in done.stderr
    assert "the first word" in (folder / "samples" / "eval.jsonl").read_text()


def test_doctor_lists_what_is_installed() -> None:
    done = call(TESTS / "small_package", "doctor", "--plugins", "--json")
    assert done.returncode == 1, done.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert plugins["seawall-verse/in_verse"]["problem"] is None
    assert plugins["seawall-verse/in_verse"]["version"] == "0.2.0"
    assert "cannot be imported" in plugins["seawall-verse/broken"]["problem"]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("data.attacks_unseen=[no_such_package:attack]", "attack plugin no_such_package:attack"),
        ("data.benign={kind: plugin, name: no-such/source}", "source plugin no-such/source"),
        ("eval.judge={kind: plugin, name: 'no_such_package:judge'}", "judge plugin no_such_package:judge"),
    ],
)
def test_a_missing_plugin_is_one_line_before_a_folder_is_made(
    planted: Path, tmp_path: Path, setting: str, name: str
) -> None:
    done = call(tmp_path, "run", planted, "-o", tmp_path / "out", "--set", setting)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"seawall: {name} ")
    assert not (tmp_path / "out").exists()


def test_a_run_folder_imports_no_module_that_its_recipe_names(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ambush.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(planted, ["data.attacks_unseen=['ambush:attack']"])
    RunFolder.open(tmp_path / "run", resolved=recipe.model_dump(mode="json"), text=planted.read_text())
    assert open_target(tmp_path / "run", None, None) == (tmp_path / "run", None)
    with pytest.raises(ConfigError, match="ambush:attack"):
        recipe_of_run(tmp_path / "run", (), section="steer")


def test_results_are_read_without_their_plugins(planted_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(planted_run, folder)
    resolved = json.loads((folder / "resolved.json").read_text())
    resolved["data"]["attacks_unseen"] = ["ambush:attack"]
    resolved["eval"]["judge"] = {"kind": "plugin", "name": "ambush:judge", "options": {}}
    (folder / "resolved.json").write_text(json.dumps(resolved))
    seal_files(RunFolder(folder))
    for words in (("report", folder), ("diff", folder, planted_run), ("gate", folder, "--max-asr", "1")):
        done = call(tmp_path, *words)
        assert "ambush" not in done.stderr, words
        assert done.returncode in (0, 1), done.stderr
