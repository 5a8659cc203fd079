"""Help texts name what the commands take, and tables outside a terminal keep their numbers whole."""

from __future__ import annotations

import ast
from typing import Any, get_args

import pytest
import typer

from places import REPOSITORY
from seawall.artifacts.evaluation import EvalResult, Rate
from seawall.cli.app import app
from seawall.config.gene import GraftMethod


def command(*path: str) -> Any:
    verb: Any = typer.main.get_command(app)
    for word in path:
        verb = verb.commands[word]
    return verb


def test_graft_names_every_baseline_and_every_form_of_a_task_row() -> None:
    graft = command("gene", "graft")
    for method in get_args(GraftMethod):
        assert method == "gene" or method in graft.help, method
    (task,) = [parameter for parameter in graft.params if parameter.name == "task"]
    for field in ("messages", "completion", "question"):
        assert field in task.help


def test_report_promises_no_recipe_of_its_own() -> None:
    (argument,) = [parameter for parameter in command("report").params if parameter.name == "recipe"]
    assert "RUN" in argument.metavar
    assert "default" not in argument.help


def test_context_managers_of_the_commands_are_entered() -> None:
    """Called and not entered, `quiet_libraries` does nothing and says nothing."""
    for path in sorted((REPOSITORY / "src/seawall/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                assert "quiet_libraries" not in ast.unparse(node.value.func), f"{path.name}:{node.lineno}"


def test_the_table_by_length_of_replies_keeps_its_numbers_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from seawall.cli.evaluate import _show

    monkeypatch.delenv("COLUMNS", raising=False)
    rate = Rate(1.0, 0.478, 1.0, 5)
    group = "attack:nested_fiction"
    result = EvalResult("sha256:a", {group: rate}, None, 0, "", lengths={group: dict.fromkeys((8, 16, 32, 64), rate)})
    shown: Any = SimpleNamespace(result=result, run=SimpleNamespace(path="runs/x"))
    _show(shown, None)
    assert max(line.count("100.0% [47.8–100.0]") for line in capsys.readouterr().out.splitlines()) == 4
