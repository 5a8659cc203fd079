"""`seawall landscape` as it is met on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from commands import refused
from planted_refusal import ATTENTION, refusing_by_attention, refusing_tokenizer
from refusing_recipe import write_refusing
from seawall.cli.app import app
from seawall.errors import SeawallError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusing")
    path = write_refusing(folder, refusing_by_attention())
    base = refusing_by_attention()
    with torch.no_grad():
        base.get_parameter(f"model.layers.{ATTENTION}.self_attn.o_proj.weight").zero_()
    base.save_pretrained(folder / "base")
    refusing_tokenizer().save_pretrained(folder / "base")
    small = {"base": {"id": str(folder / "base")}, "random_directions": 0, "amounts": [-1.0, 0.0], "test_prompts": 4}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "landscape": small}))
    return path


def test_a_recipe_is_measured_and_then_its_run(recipe: Path, tmp_path: Path) -> None:
    words = ["landscape", str(recipe), "--output", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["run"] == str(tmp_path / "run")
    assert [one["name"] for one in found["landscape"]["points"]] == ["origin", "aligned-1.0"]
    again = CliRunner().invoke(app, ["landscape", str(tmp_path / "run")], catch_exceptions=False)
    assert again.exit_code == 0
    assert "aligned direction" in again.stdout
    assert found["landscape"]["claim"].split(".")[0] in " ".join(again.stdout.split())
    assert again.stdout.strip().endswith(str(tmp_path / "run/landscape.html"))


def test_wrong_input_is_one_line(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    refused("landscape", recipe, "-o", target, "--set", "landscape.amounts=[1.0]", saying="amounts is wrong")
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("RECIPE", "--output", "NEW", "--set", "landscape.base=null"), "set landscape.base.id"),
        (("RECIPE", "--output", "NEW", "--set", "landscape.adapter=EMPTY"), "holds no adapter"),
        (("EMPTY", "--output", "NEW"), "is a run; got --output"),
        (("EMPTY",), "is no run folder"),
        (("NEW",), "does not exist"),
    ],
)
def test_wrong_input(recipe: Path, tmp_path: Path, arguments: tuple[str, ...], saying: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RECIPE": str(recipe), "NEW": str(tmp_path / "new"), "EMPTY": str(tmp_path / "empty")}
    words = [word.replace("=EMPTY", f"={tmp_path / 'empty'}") for word in arguments]
    with pytest.raises(SeawallError) as caught:
        CliRunner().invoke(app, ["landscape", *(places.get(word, word) for word in words)], catch_exceptions=False)
    assert saying in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())
