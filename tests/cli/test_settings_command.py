"""`seawall settings`: every setting for people, the JSON schema for editors, and the schema file beside the recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands import refused, seawall
from places import REPOSITORY
from seawall.cli.settings import list_settings, recipe_schema, schema_text
from seawall.config import Recipe
from seawall.config.problems import key_paths
from seawall.errors import ConfigError

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


def test_every_key_is_listed_with_default_type_and_meaning() -> None:
    listed = list_settings()
    sources = ("data.benign.", "data.borderline.", "data.gold.", "eval.engine.")
    expected = {path for path in key_paths(Recipe) if not path.endswith(".kind") and not path.startswith(sources)}
    assert {setting.path for setting in listed} >= expected
    for setting in listed:
        assert setting.type, setting
        assert setting.meaning, setting
        assert "typing" not in setting.type, setting


@pytest.mark.parametrize("width", [80, 140])
def test_lines_fit_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seawall.cli.settings import settings

    monkeypatch.setenv("COLUMNS", str(width))
    settings("repair")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "  repair.rounds = 3  (integer from 1 to 1000)" in lines


def test_a_part_of_the_recipe() -> None:
    assert {setting.path.split(".")[0] for setting in list_settings("gene")} == {"gene"}
    (rank,) = list_settings("gene.rank")
    assert (rank.default, rank.type) == ("8", "integer from 1 to 4096")
    (batch,) = list_settings("eval.batch_size")
    assert batch.type == "integer or auto"
    guard = next(setting for setting in list_settings("eval.judge") if setting.path == "eval.judge.format")
    assert guard.kind == "guard"
    with pytest.raises(ConfigError, match=r"repair\.ronds.*did you mean repair\.rounds"):
        list_settings("repair.ronds")
    refused("settings", "nothing", saying="nothing")


def test_the_schema_as_json() -> None:
    done = seawall("settings", "repair.expert", "--json")
    assert done.returncode == 0, done.stderr
    assert "lr_scheduler_type" in json.loads(done.stdout)["$defs"]["ExpertStep"]["properties"]
    assert recipe_schema("repair.rounds")["maximum"] == 1000


def test_the_schema_file_is_current_and_recipes_name_it() -> None:
    path = REPOSITORY / "recipes" / "schema.json"
    make = (
        "python -c \"from seawall.cli.settings import schema_text; print(schema_text(), end='')\" > recipes/schema.json"
    )
    assert path.read_text(encoding="utf-8") == schema_text(), f"make it anew: {make}"
    for recipe in RECIPES:
        assert recipe.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n"), recipe


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_shipped_recipes_keep_to_the_schema(recipe: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(recipe.read_text(encoding="utf-8")), recipe_schema())


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys\nsys.argv = ['seawall', 'settings', 'repair']\nfrom seawall.cli import main\ntry:\n    main()\n"
    code += "except SystemExit as end:\n    assert not end.code\n"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
