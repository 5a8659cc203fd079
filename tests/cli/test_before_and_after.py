"""The five commands of docs/eval.md, before and after a fine-tune, as a user types them, on two tiny dense models."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from commands import forked, refused
from dense import dense
from families import tiny_tokenizer
from places import REPOSITORY

SMALL = [f"data.test_{kind}=2" for kind in ("goals", "benign", "borderline")] + ["eval.max_new_tokens=3"]


def documented() -> list[list[str]]:
    text = (REPOSITORY / "docs" / "eval.md").read_text("utf-8")
    block = text.partition("## Before and after a fine-tune")[2].partition("```bash\n")[2].partition("```")[0]
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.fixture
def models(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run."""
    for seed, name in enumerate(("base-model", "tuned-model")):
        dense("llama", seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    shutil.copyfile(planted, tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_five_commands_compare_two_dense_models(models: Path) -> None:
    lines = documented()
    assert [line[0] for line in lines] == ["eval", "eval", "diff", "report", "gate"]
    for line in lines:
        small = [word for change in SMALL for word in ("--set", change)] if line[0] == "eval" else []
        done = forked(*line, *small)
        # A random model may leave a group without a reply that can be judged: a failed check, not wrong input.
        assert done.returncode in ((0,) if line[0] in ("diff", "report") else (0, 1)), done.stderr
    assert (models / "runs/tuned/comparison.html").is_file()
    assert {path.name for path in (models / "runs/base").iterdir()} >= {"eval", "samples", "summary.json"}
    refused("diff", "runs/base", "base-model", saying="seawall eval --model FOLDER")
    refused("gate", "runs/tuned", "--max-benign-drop", "0.1", saying="--against")
