"""`seawall steer` as it is met on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import fresh, refused
from planted_refusal import refusing_by_attention
from refusing_recipe import write_refusing
from seawall.cli.app import app
from seawall.errors import SeawallError

SMALL = {"positions": [-1], "train_prompts": 8, "validation_prompts": 4, "test_prompts": 4, "experts": False}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refusing(tmp_path_factory.mktemp("refusing"), refusing_by_attention(), **SMALL)


def test_a_recipe_is_steered_and_then_its_run(recipe: Path, tmp_path: Path) -> None:
    done = fresh("steer", recipe, "--output", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["run"] == str(tmp_path / "run")
    assert [one["name"] for one in found["steer"]["conditions"]][:2] == ["original", "layer"]
    again = CliRunner().invoke(app, ["steer", str(tmp_path / "run")], catch_exceptions=False)
    assert again.exit_code == 0
    assert found["steer"]["claim"].split(".")[0] in " ".join(again.stdout.split())
    assert again.stdout.strip().endswith(str(tmp_path / "run/steering.html"))


def test_wrong_input_is_one_line(recipe: Path, tmp_path: Path) -> None:
    refused("steer", recipe, "-o", tmp_path / "run", "--set", "steer.positions=[-900]", saying="outside the templated")
    assert not (tmp_path / "run/steer").exists()
    assert not (tmp_path / "run/steering.html").exists()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("RECIPE", "--output", "NEW", "--set", "steer.mode=remove"), "steer.mode is wrong; got 'remove'"),
        (("RECIPE", "--output", "NEW", "--set", "steer.layer_coefficient=.nan"), "steer.layer_coefficient is wrong"),
        (("EMPTY", "--output", "NEW"), "is a run; got --output"),
        (("EMPTY",), "is no run folder"),
        (("NEW",), "does not exist"),
    ],
)
def test_wrong_input(recipe: Path, tmp_path: Path, arguments: tuple[str, ...], saying: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RECIPE": str(recipe), "NEW": str(tmp_path / "new"), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SeawallError) as caught:
        CliRunner().invoke(app, ["steer", *(places.get(word, word) for word in arguments)], catch_exceptions=False)
    assert saying in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())
