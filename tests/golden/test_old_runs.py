"""Runs that seawall 0.1.0 left: every verb goes on with them, makes nothing anew, and finds the same numbers.

The archive holds a tiny model with a repair and its audits, and another with steering, landscape, tuning and a gene. No
stage is run again, so no number depends on the processor.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seawall.artifacts.graft import Graft
from seawall.config import load_recipe
from seawall.config.audit import AUDITS
from seawall.evaluation.gate import Bounds
from seawall.jobs.audit import audit_run
from seawall.jobs.diff import diff
from seawall.jobs.gate import gate_run
from seawall.jobs.gene import extract_gene
from seawall.jobs.landscape import landscape_recipe
from seawall.jobs.report import rewrite_report
from seawall.jobs.run import run_recipe
from seawall.jobs.steer import steer_recipe
from seawall.jobs.tune import tune_recipe
from seawall.runs.files import file_hash
from seawall.runs.progress import Quiet

ARCHIVE = Path(__file__).with_name("runs-0.1.0.tar.xz")
REWRITTEN = (".lock", "manifest.json", "report.html", "steering.html", "landscape.html", "tuning.html", "gene.html")
"""Files of a run folder that a verb writes again: times, and pages whose wording may change."""
AUDITED = (
    "audit.silencing.goals=3",
    "audit.silencing.largest=0.17",
    "audit.localisation.bootstrap=100",
    "audit.steering.amounts=[2, 40]",
    "audit.steering.goals=3",
    "audit.tamper.steps=[0, 2]",
    "audit.tamper.goals=3",
    "audit.tamper.lr=0.02",
    "audit.tamper.sweeps=[harmless]",
    "audit.tamper.trained=experts",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(folder, filter="data")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files if path.name not in REWRITTEN}


def unchanged(folder: Path, work: Callable[[], Any]) -> Any:
    """What `work` returns; every file of the run is there as before, and there is none beside them."""
    before = contents(folder)
    result = work()
    assert contents(folder) == before
    return result


def rates_of(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every rate of a summary, without its interval: that is made by the method of the reading version."""
    rows = {**summary["attacks"], **{key: value for key, value in summary.items() if isinstance(value, dict)}}
    return [
        (f"{name} {side}", [row[side][key] for key in ("rate", "n", "unscored")])
        for name, row in rows.items()
        for side in ("before", "after")
        if isinstance(row.get(side), dict) and "rate" in row[side]
    ]


def test_the_main_job_is_only_read_again(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive / "planted")
    recipe, run = load_recipe(Path("recipe.yaml")), Path("run")
    text = Path("recipe.yaml").read_text()
    before = json.loads((run / "summary.json").read_text())
    files = contents(run)
    outcome = run_recipe(recipe, run, text=text, reporter=Quiet())
    assert {**contents(run), "summary.json": ""} == {**files, "summary.json": ""}
    assert len(rates_of(before)) >= 6
    assert outcome.summary is not None
    assert rates_of(outcome.summary) == rates_of(before)
    audits = [name for name in AUDITS if (run / "audit" / name).exists()]
    assert len(audits) == 5
    results = unchanged(run, lambda: audit_run(run, only=audits, changes=AUDITED, reporter=Quiet()))
    stored = [json.loads((run / "audit" / result.audit / "audit.json").read_text()) for result in results]
    assert [result.claim for result in results] == [document["claim"] for document in stored]
    page = run / "report.html"
    page.unlink()
    unchanged(run, lambda: rewrite_report(run))
    assert all(result.claim.split()[0] in page.read_text(encoding="utf-8") for result in results)


def test_a_gate_and_a_difference_read_it(archive: Path) -> None:
    run = archive / "planted" / "run"
    gate = unchanged(run, lambda: gate_run(run, Bounds(max_asr=0.6)))
    assert [(check.group, check.measured, check.passed) for check in gate.checks] == [("attack:story", 0.0, True)]
    other = archive / "planted" / "other"
    shutil.copytree(run, other)
    unchanged(run, lambda: diff(run, other))


@pytest.mark.parametrize(
    ("run", "changes", "document", "verb"),
    [
        ("run", (), "steer/steering.json", steer_recipe),
        ("induced", ("steer.mode=induce",), "steer/steering.json", steer_recipe),
        ("run", (), "landscape/landscape.json", landscape_recipe),
    ],
)
def test_other_verbs_only_read_theirs(
    run: str, changes: tuple[str, ...], document: str, verb: Any, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive / "refusing")
    recipe, text = load_recipe(Path("recipe.yaml"), changes), Path("recipe.yaml").read_text()
    result = unchanged(Path(run), lambda: verb(recipe, Path(run), text=text, reporter=Quiet()))
    assert result.claim == json.loads(Path(run, document).read_text())["claim"]


def test_a_comparison_of_trainings_is_only_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claim and intervals are those of the reading version; its rates are as they were."""
    monkeypatch.chdir(archive / "refusing")
    recipe, text, path = load_recipe(Path("recipe.yaml")), Path("recipe.yaml").read_text(), Path("run/tune/tuning.json")
    files, before = contents(Path("run")), json.loads(path.read_text())
    tune_recipe(recipe, Path("run"), text=text, reporter=Quiet())
    after = json.loads(path.read_text())
    assert {**contents(Path("run")), "tune/tuning.json": ""} == {**files, "tune/tuning.json": ""}
    rates = [
        [{name: rate["rate"] for name, rate in row["rates"].items()} for row in (document["before"], *document["rows"])]
        for document in (before, after)
    ]
    assert rates[0] == rates[1]


def test_a_gene_and_its_graft_are_only_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive / "refusing")
    recipe, text = load_recipe(Path("recipe.yaml")), Path("recipe.yaml").read_text()
    gene = unchanged(Path("run"), lambda: extract_gene(recipe, Path("run"), text=text, reporter=Quiet()))
    graft = Graft.load(Path("graft"))
    assert graft.gene == gene.fingerprint
    assert set(graft.coefficients) == set(gene.held_layers)
