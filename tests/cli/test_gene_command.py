"""`seawall gene` as it is met on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import fresh, refused
from seawall.cli.app import app
from seawall.errors import SeawallError
from siblings import write_shots, write_siblings

pytest.importorskip("peft")
QUICK = ("--set", "model.dtype=float32", "--set", "model.device=cpu", "--set", "gene.graft.steps=2")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a gene, a task's model in `degraded/`, and shots."""
    folder = tmp_path_factory.mktemp("family")
    short = {"epochs": 1, "max_new_tokens": 3, "judged": 0, "harmful": 6, "benign": 6, "held_out": 2}
    recipe = write_siblings(folder, extract=short)
    done = fresh("gene", "extract", recipe, "-o", folder / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["gene"] == str(folder / "run/gene")
    assert len(found["layers"]) == 5
    assert len(found["curve"]) == 2
    assert found["refusals"] == {}
    write_shots(folder)
    return folder


def invoke(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["gene", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_select_graft_revert_and_compose(family: Path, tmp_path: Path) -> None:
    shown = invoke("select", family / "run", "-o", tmp_path / "top", "--fraction", "0.2")
    assert [line.split()[0] for line in shown.splitlines() if line.rstrip().endswith("yes")] == ["2"]
    assert shown.strip().endswith(str(tmp_path / "top"))
    refusals = f"gene.graft.refusals={family / 'refusals.jsonl'}"
    shots = ("--shots", "2", "--task", family / "task.jsonl", "--set", refusals)
    grafted = invoke("graft", family / "degraded", "-g", tmp_path / "top", "-o", tmp_path / "out", *shots, *QUICK)
    assert "tuned on 2 refusals and 2 task examples, keeping 2 harmless replies; reloaded, the logits" in " ".join(
        grafted.split()
    )
    words = ("graft", family / "degraded", "-g", family / "run", "--merge", "-o", tmp_path / "merged", *QUICK, "--json")
    document = json.loads(invoke(*words))
    assert document["coefficients"] == {str(layer): 1.0 for layer in range(5)}
    assert document["form"] == "merged"
    assert document["result"] != document["task_model"]
    back = json.loads(invoke("revert", tmp_path / "merged", "-o", tmp_path / "back", "--json"))
    assert back == {"model": str(tmp_path / "back"), "weights": document["task_model"]}
    composed = (
        "compose",
        family / "run",
        tmp_path / "top",
        "--weight",
        "1",
        "--weight",
        "0.5",
        "-o",
        tmp_path / "both",
    )
    found = json.loads(invoke(*composed, "--json"))
    assert found["rank"] == 4
    assert [(one["layer"], round(one["cosine"], 6)) for one in found["interference"]] == [(2, 1.0)]
    assert "2" in invoke("compose", family / "run", tmp_path / "top", "-o", tmp_path / "again")


def test_a_baseline_says_which_it_is(family: Path, tmp_path: Path) -> None:
    refusals = f"gene.graft.refusals={family / 'refusals.jsonl'}"
    shots = ("--shots", "2", "--task", family / "task.jsonl", "--set", refusals, *QUICK)
    words = ("graft", family / "degraded", "-g", family / "run", *shots, "--set", "gene.graft.method=safety_sft")
    said = " ".join(invoke(*words, "-o", tmp_path / "out").split())
    assert "safety_sft: an adapter at the gene's points in 5 layers, trained on 2 refusals" in said
    assert "in 2 updates; loss per token from" in said
    assert json.loads(invoke(*words, "-o", tmp_path / "again", "--json"))["method"] == "safety_sft"


def test_wrong_input_is_one_line(family: Path, tmp_path: Path) -> None:
    words = ("gene", "graft", family / "degraded", "-g", tmp_path / "nowhere", "-o", tmp_path / "out")
    refused(*words, saying="is no gene; got no such folder")


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (("graft", "TASK", "-g", "RUN", "-o", "NEW", "--shots", "2"), "got shots without task examples"),
        (("graft", "TASK", "-g", "RUN", "-o", "NEW", "--set", "gene.graft.step=2"), "did you mean gene.graft.steps"),
        (("graft", "TASK", "-o", "NEW"), "no gene is named"),
        (("graft", "TASK", "-g", "RUN", "-o", "NEW", "--set", "gene.graft.method=safety_sft"), "nothing to train on"),
        (("graft", "TASK", "-o", "NEW", "--set", "gene.graft.method=safelora"), "expected an anchor"),
        (
            ("graft", "TASK", "--merge", "-o", "NEW", "--set", "gene.graft={method: safelora, anchor: A}"),
            "is not one; got a checkpoint",
        ),
        (("graft", "TASK", "-g", "RUN", "-o", "FULL"), "already exists"),
        (("graft", "TASK", "-g", "RUN", "-o", "INSIDE"), "file is a file; choose another folder with -o"),
        (("graft", "TASK", "-g", "RUN", "-o", "."), ". is the current directory"),
        (("graft", "nowhere/at/all", "-g", "RUN", "-o", "NEW"), "does not exist"),
        (("select", "RUN", "-o", "NEW", "--keep", "best"), "--keep; got 'best'"),
        (("select", "RUN", "-o", "NEW", "--fraction", "0"), "--fraction must be above 0 and at most 1; got 0.0"),
        (("select", "RUN", "-o", "NEW", "--fraction", "1.5"), "1; got 1.5"),
        (
            ("select", "RUN", "-o", "NEW", "--experts", "0"),
            "--experts must be above 0 and at most 1; got 0.0",
        ),
        (("select", "RUN", "-o", "NEW", "--experts", "nan"), "1; got nan"),
        (("select", "RUN", "-o", "NEW", "--experts", "0.5"), "the gene changes no stack of experts"),
        (("select", "RUN", "-o", "NEW", "--experts-by", "best"), "--experts-by; got 'best'"),
        (("select", "RUN", "-o", "NEW", "--experts-by", "random"), "add --experts SHARE"),
        (("select", "RUN", "-o", "FULL", "--experts", "0.5"), "already exists"),
        (("extract", "RECIPE", "-o", "NEW", "--set", "gene.extract.expert_shares=[0]"), "gene.extract.expert_shares"),
        (("compose", "RUN", "-o", "NEW"), "got 1 genes, 1 weights"),
        (("revert", "TASK", "-o", "NEW"), "is no graft"),
        (("extract", "RECIPE", "-o", "NEW", "--set", "gene.targets=[w9]"), "no weight matrix w9"),
        (("extract", "RECIPE", "-o", "NEW", "--set", "gene.rank=0"), "gene.rank is wrong; got 0"),
    ],
)
def test_wrong_input(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], saying: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("kept")
    places = {
        "TASK": family / "degraded",
        "RUN": family / "run",
        "RECIPE": family / "recipe.yaml",
        "NEW": tmp_path / "new",
        "FULL": tmp_path / "full",
        "INSIDE": tmp_path / "file/new",
    }
    with pytest.raises(SeawallError) as caught:
        CliRunner().invoke(app, ["gene", *(str(places.get(word, word)) for word in words)], catch_exceptions=False)
    assert saying in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new/gene").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
