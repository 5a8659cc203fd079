"""`seawall tune` as it is met on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import forked, refused
from seawall.cli.app import app
from seawall.errors import SeawallError
from tuning_recipe import write_tuning

pytest.importorskip("peft")
pytest.importorskip("trl")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tuning(tmp_path_factory.mktemp("tune"), epochs=1.0, methods=["sft"], test_prompts=4)
    task = json.dumps({"prompt": "train 0: red is", "completion": "red"})
    (path.parent / "leaked.jsonl").write_text(f"{task}\n")
    (path.parent / "empty.jsonl").write_text("\n")
    (path.parent / "unanswered.jsonl").write_text(f"{task}\n{json.dumps({'prompt': 'blue is'})}\n")
    return path


def test_a_recipe_is_tuned_and_shown(recipe: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    done = CliRunner().invoke(app, ["tune", str(recipe), "-o", run, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["run"] == run
    (row,) = found["tune"]["rows"]
    assert (row["method"], row["adapter"]) == ("sft", "tune/sft-seed0/adapter")
    harmful = found["tune"]["methods"]["sft"]["harmful"]
    assert harmful.pop("evades", 0) == row["rates"]["harmful"].get("evades", 0)
    assert harmful == {
        "mean": row["rates"]["harmful"]["rate"],
        "low": row["rates"]["harmful"]["low"],
        "high": row["rates"]["harmful"]["high"],
        "n": 1,
        "replies": 4,
        "unscored": 0,
    }
    again = CliRunner().invoke(app, ["tune", str(recipe), "-o", run], catch_exceptions=False)
    assert again.exit_code == 0
    assert "plain LoRA (sft)" in again.stdout
    assert again.stdout.strip().splitlines()[-2:] == [f"{run}/tune/sft-seed0/adapter", f"{run}/tuning.html"]


def test_wrong_input_is_one_line_and_nothing_is_written(recipe: Path, tmp_path: Path) -> None:
    change = "tune.methods=[safelora]"
    refused("tune", recipe, "-o", tmp_path / "run", "--set", change, saying="sft among the methods")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        (["tune.contamination=1.0"], "tune.contamination is wrong; got 1.0"),
        (["tune.contamination=-0.1"], "tune.contamination is wrong; got -0.1"),
        (["tune.weight=-1.0"], "tune.weight is wrong; got -1.0"),
        (["tune.weight=.nan"], "tune.weight is wrong; got nan"),
        (["tune.seeds=[1, 1]"], "tune.seeds is wrong"),
        (
            ["tune.contamination=0.1", "tune.keep_contaminated=false", "tune.evaluate=false"],
            "keep_contaminated: true or evaluate: true",
        ),
        (["tune.methods=[sft, dpo]"], "got 'dpo'"),
        (["tune.lora.target_modules=[]"], "at least one of target_modules and target_parameters"),
        (["tune.lora.target_parameters=[experts.down_proj]", "tune.lora.dropout=0.1"], "dropout: 0.0"),
        (["tune.base=null", "tune.methods=[asft]"], "asft need the model's base; got no tune.base"),
        (["eval.engine={kind: endpoint, base_url: 'http://localhost:1', model: m}"], "cannot be fine-tuned"),
    ],
)
def test_wrong_settings_make_no_folder(recipe: Path, tmp_path: Path, changes: list[str], saying: str) -> None:
    assert saying in said(recipe, tmp_path, changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        (["tune.task.test=LEAKED"], "got 1 prompts of"),
        (["tune.task.train=MISSING"], "missing.jsonl: cannot be read"),
        (["tune.task.test=MISSING", "tune.evaluate=false"], "missing.jsonl: cannot be read"),
        (["tune.task.train=EMPTY"], "empty.jsonl: the task has no rows; got an empty file"),
        (
            ["tune.task.train=UNANSWERED"],
            "unanswered.jsonl:2: field 'completion' is missing; got the fields 'prompt'; add the field to this row",
        ),
        (["tune.task.answer=number"], "row 1 of the task cannot be scored by `number`"),
        (["tune.task.train_rows=1", "tune.contamination=0.9"], "leaves no task row; got 1 rows"),
        (["data.harmful.path=MISSING"], "missing.jsonl: cannot be read"),
    ],
)
def test_data_that_is_wrong_makes_no_folder(recipe: Path, tmp_path: Path, changes: list[str], saying: str) -> None:
    files = {
        "LEAKED": "leaked.jsonl",
        "MISSING": "missing.jsonl",
        "EMPTY": "empty.jsonl",
        "UNANSWERED": "unanswered.jsonl",
    }
    for name, file in files.items():
        changes = [change.replace(name, str(recipe.parent / file)) for change in changes]
    assert saying in said(recipe, tmp_path, changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        (["tune.lora.target_modules=[nope]"], "the model has no weight matrix nope"),
        (["tune.base=null", "tune.lora.target_modules=[nope]"], "the adapter does not fit the model"),
        (["tune.base.id=BASE"], "nobase does not exist"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_left_as_finished(
    recipe: Path, tmp_path: Path, changes: list[str], saying: str
) -> None:
    changes = [change.replace("BASE", str(recipe.parent / "nobase")) for change in changes]
    assert saying in said(recipe, tmp_path, [*changes, "tune.evaluate=false"])
    assert not list((tmp_path / "run").rglob("adapter_model.safetensors"))


def said(recipe: Path, tmp_path: Path, changes: list[str]) -> str:
    options = [word for change in changes for word in ("--set", change)]
    with pytest.raises(SeawallError) as caught:
        CliRunner().invoke(app, ["tune", str(recipe), "-o", str(tmp_path / "run"), *options], catch_exceptions=False)
    return str(caught.value)


@pytest.mark.parametrize("largest_file", [6_000, 60_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(recipe: Path, tmp_path: Path, largest_file: int) -> None:
    """The larger limit stops the state of the optimizer, which torch writes."""
    done = forked("tune", recipe, "-o", tmp_path / "run", largest_file=largest_file)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("seawall: cannot use ")
    assert forked("tune", recipe, "-o", tmp_path / "run").returncode == 0
