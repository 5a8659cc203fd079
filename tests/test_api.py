"""The functions that `import seawall` gives."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import seawall
from seawall.config import load_recipe
from seawall.errors import ConfigError, RunFolderError, SeawallError

MOST = 20


def test_the_names_are_few_documented_and_there() -> None:
    assert len(seawall.__all__) <= MOST
    assert dir(seawall) == sorted(seawall.__all__)
    for name in set(seawall.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(seawall, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = seawall.nothing


def test_importing_it_imports_no_torch() -> None:
    words = "import sys, seawall; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


def test_verbs_take_settings_by_section_and_return_results(planted: Path, planted_run: Path, tmp_path: Path) -> None:
    result = seawall.evaluate(
        planted,
        output=tmp_path / "eval",
        model=str(planted.parent / "model"),
        eval={"max_new_tokens": 8, "gold": False},
        data={"test_goals": 2},
    )
    assert result.path == tmp_path / "eval"
    assert result.summary == json.loads((tmp_path / "eval/summary.json").read_text())
    assert (tmp_path / "eval/recipe.yaml").read_text().endswith("# --set data.test_goals=2\n")
    with pytest.raises(ConfigError, match=r"eval\.max_new_token\b"):
        seawall.evaluate(planted, output=tmp_path / "other", eval={"max_new_token": 1})
    finished = seawall.run(load_recipe(planted), output=planted_run)
    assert (finished.summary["recipe"], finished.report) == ("planted", planted_run / "report.html")
    assert "<iframe sandbox" in finished._repr_html_()
    with pytest.raises(ConfigError, match="no such stage; got until='repiar'"):
        seawall.run(planted, until="repiar")


def test_a_recipe_object_takes_settings_and_is_kept_as_text(planted: Path, tmp_path: Path) -> None:
    recipe = load_recipe(planted)
    seawall.run(recipe, output=tmp_path / "run", until="profile", data={"train_goals": 4})
    kept = load_recipe(tmp_path / "run/recipe.yaml")
    assert kept == recipe.model_copy(update={"data": recipe.data.model_copy(update={"train_goals": 4})})


def test_looking_at_models_runs_and_plans(planted: Path, planted_run: Path) -> None:
    model = str(planted.parent / "model")
    assert seawall.doctor(model).summary["supported"]
    assert seawall.plan(planted).summary["peak"] > 0
    assert "<pre>" in seawall.plan(planted)._repr_html_()
    assert seawall.gate(planted_run, max_asr=1.0).summary["passed"]
    with pytest.raises(ConfigError, match="unknown bound; got max_asd"):
        seawall.gate(planted_run, max_asd=1.0)
    assert seawall.diff(model, planted_run / "model").summary
    with pytest.raises(RunFolderError):
        seawall.gate(planted.parent, max_asr=1.0)
    opened, tokenizer = seawall.load(model, device="cpu")
    assert (opened.training, tokenizer.chat_template is None) == (False, False)


def by_model(folder: Path) -> list[Callable[[Any], object]]:
    """The functions that a model is given to, with no other argument wrong but a gene that is missing."""
    return [seawall.load, seawall.doctor, lambda model: seawall.graft(model, folder, output=folder / "out")]


@pytest.mark.parametrize("model", [3, None, ["lab"], b"lab"])
def test_a_model_that_is_no_name_is_one_line(model: Any, tmp_path: Path) -> None:
    for function in by_model(tmp_path):
        with pytest.raises(ConfigError, match=r"seawall\.\w+: model is wrong"):
            function(model)


def test_a_model_may_be_a_path(tmp_path: Path) -> None:
    for function in by_model(tmp_path):
        with pytest.raises(SeawallError, match=r"no-such|is no gene"):
            function(tmp_path / "no-such")
