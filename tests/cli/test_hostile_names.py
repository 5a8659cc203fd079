"""Every command with names that try to act: on the terminal they are visible text, and no command fails on them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import forked
from seawall.runs.files import read_json

NAME = "n\x1b[31m[bold]\u202e[link=https:x]\x07\x9b2J"
"""For files, folders, attacks and models; every part of it acts on some terminal or in some library."""


@pytest.fixture(scope="module")
def recipe(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted recipe and model in a folder with a hostile name, its attack and its recipe too."""
    folder = tmp_path_factory.mktemp("hostile") / NAME
    shutil.copytree(planted.parent, folder)
    attacks = folder / "attacks.jsonl"
    rows = [json.loads(line) for line in attacks.read_text().splitlines()]
    attacks.write_text("".join(json.dumps({**row, "attack": f"{NAME}\nstory"}) + "\n" for row in rows))
    document = yaml.safe_load(planted.read_text().replace(str(planted.parent), "PLACE"))
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(placed(document, str(folder)), allow_unicode=False))
    return path


def placed(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: placed(inner, folder) for key, inner in value.items()}
    return value.replace("PLACE", folder) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A finished run in a folder with a hostile name."""
    folder = recipe.parent / f"run {NAME}"
    shows("run", recipe, "-o", folder)
    return folder


def shows(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command whose output has visible characters alone, and no markup was obeyed."""
    done = forked(*words)
    assert done.returncode == code, done.stderr
    for text in (done.stdout, done.stderr):
        assert all(line.isprintable() for line in text.split("\n")), text
    return done


def test_a_run_its_gate_report_and_differences(run: Path) -> None:
    done = shows("gate", run, "--max-asr", "1")
    assert "[bold]" in done.stdout
    assert "[link=https:x]" in done.stdout
    shows("report", run)
    shows("diff", run, run)
    shows("diff", run / "model", run / "model")
    shows("gate", run.parent / NAME, "--max-asr", "1", code=2)
    page = (run / "report.html").read_text("utf-8")
    assert all(char.isprintable() or char in "\n\u200c\u200d" or char.isspace() for char in page)
    assert "link=https:x" in page


def test_an_evaluation_an_audit_and_their_errors(recipe: Path, run: Path) -> None:
    shows("eval", recipe, "--delta", run / "delta", "-o", recipe.parent / f"eval {NAME}")
    shows("audit", run, "--only", "silencing")
    shows("audit", run, "--only", NAME, code=2)
    shows("eval", recipe, "-o", recipe.parent, code=2)
    shows("apply", run / "delta", "--model", recipe.parent / "model", "-o", recipe.parent / f"again {NAME}")
    shows("apply", run / "delta", "--model", run / "model", "-o", recipe.parent / f"twice {NAME}", code=2)


def test_recipes_and_options(recipe: Path, tmp_path: Path) -> None:
    shows("plan", recipe)
    shows("run", recipe, "--set", f"model.id={json.dumps(NAME)}", code=2)
    shows("run", recipe, "--set", f"data.harmful.path={json.dumps(NAME)}", code=2)
    shows("run", recipe, "--set", f"{NAME}=1", code=2)
    broken = tmp_path / f"{NAME}.yaml"
    broken.write_text(yaml.safe_dump({"model": {"id": "lab", NAME: 1}}))
    shows("run", broken, code=2)
    broken.write_text(yaml.safe_dump({"eval": {"judge": {"kind": NAME}}}))
    shows("run", broken, code=2)
    broken.write_bytes(b"model: {id: \x1b[31m}")
    shows("run", broken, code=2)


@pytest.mark.parametrize("key", ["model_type", "architectures", "dtype", "hidden_act", "rope_parameters"])
def test_configurations(recipe: Path, tmp_path: Path, key: str) -> None:
    model = tmp_path / NAME
    shutil.copytree(recipe.parent / "model", model)
    config = read_json(model / "config.json")
    value: Any = [NAME] if key == "architectures" else {"rope_type": NAME} if key == "rope_parameters" else NAME
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    done = forked("doctor", model)
    assert done.returncode in (0, 2), done.stderr
    assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n")), done.stdout + done.stderr


def test_a_template_that_raises_a_hostile_message(recipe: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(recipe.parent / "model", model)
    words = json.dumps(NAME)
    (model / "chat_template.jinja").write_text(f"{{{{ raise_exception({words}) }}}}")
    shows("eval", recipe, "--set", f"model.id={model}", "-o", tmp_path / "eval", code=2)
