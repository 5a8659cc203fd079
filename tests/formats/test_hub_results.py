"""The Hub's own parser reads the rates back, with their datasets, and files without a dataset are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from commands import forked, refused
from evaluations import verdicts, write_evaluation
from seawall.artifacts.evaluation import EvalResult
from seawall.formats.hub_results import write_hub_results
from seawall.jobs.report import model_documents
from seawall.report.hub_results import EVAL_RESULTS
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.sealed import seal_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASET = "seaside/walruses"


def entries(text: str) -> dict[str, EvalResultEntry]:
    return {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))}


def groups_of(run: Path) -> list[str]:
    return list(EvalResult.load(run / "eval-after").groups)


def with_sources(run: Path, **sources: Any) -> Path:
    """The recipe of a run, with other settings of its prompts."""
    document = read_json(run / "resolved.json")
    document["data"] |= sources
    (run / "resolved.json").write_text(json.dumps(document))
    seal_files(RunFolder(run))
    return run


@pytest.fixture(scope="module")
def written(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalResultEntry]:
    folder = tmp_path_factory.mktemp("repository")
    words = ("--dataset", DATASET, "--revision", COMMIT, "--source", "https://example.org/report")
    done = forked("export", "eval-results", planted_run, "-o", folder, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / EVAL_RESULTS)
    return entries((folder / EVAL_RESULTS).read_text())


def test_the_hubs_parser_reads_every_rate_of_the_repaired_model(
    written: dict[str, EvalResultEntry], planted_run: Path
) -> None:
    rates = EvalResult.load(planted_run / "eval-after").groups
    values = {task: entry.value for task, entry in written.items()}
    assert values.pop("attack_success_rate") is not None
    assert values["attack_success_rate_story"] == round(rates["attack:story"].rate or 0, 4)
    assert values["plain_refusal"] == round(rates["plain"].rate or 0, 4)
    assert len(values) == len(rates)
    assert all(0 <= value <= 1 for value in values.values())


def test_an_entry_tells_dataset_date_interval_judge_and_seed(
    written: dict[str, EvalResultEntry], planted_run: Path
) -> None:
    entry = written["plain_refusal"]
    rate = EvalResult.load(planted_run / "eval-after").groups["plain"]
    assert (entry.dataset_id, entry.dataset_revision) == (DATASET, COMMIT)
    assert entry.date == read_json(planted_run / "manifest.json")["stages"]["eval-after"]["ended"]
    assert (entry.source_url, entry.source_name) == ("https://example.org/report", "seawall")
    notes = str(entry.notes).split("; ")
    assert notes[0] == "plain refusal: share of replies that are refused, from 0 to 1"
    assert notes[1] == f"95% interval {rate.low:.4f} to {rate.high:.4f}"
    assert notes[2].startswith(f"{rate.n} replies")
    assert notes[3:5] == ["judge keyword", f"seed {read_json(planted_run / 'resolved.json')['seed']}"]


def test_without_a_dataset_the_sources_of_the_recipe_are_taken(planted_run: Path, tmp_path: Path) -> None:
    refused("export", "eval-results", planted_run, "-o", tmp_path / "none", saying="--dataset OWNER/NAME")
    assert not (tmp_path / "none").exists()
    hub = {"kind": "dataset", "id": DATASET, "revision": COMMIT}
    run = with_sources(shutil.copytree(planted_run, tmp_path / "run"), benign=hub)
    done = forked("export", "eval-results", run, "-o", tmp_path / "own", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    read_back = entries(Path(document["files"][0]).read_text())
    assert list(read_back) == document["tasks"]
    assert {(entry.dataset_id, entry.dataset_revision) for entry in read_back.values()} == {(DATASET, COMMIT)}
    assert "benign_compliance" in read_back
    assert "plain_refusal" not in read_back
    assert {"plain", "borderline", "attack", "attack:story"} <= set(document["left_out"])


def test_a_named_benchmark_has_its_dataset_and_a_local_copy_has_none(planted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    families = [group.removeprefix("attack:") for group in groups_of(run) if group.startswith("attack:")]
    with_sources(run, harmful={"kind": "advbench", "path": None, "split": None}, attacks_unseen=families)
    results = write_hub_results(run, tmp_path / "hub")
    assert {"attack_success_rate", "attack_success_rate_story", "plain_refusal"} <= set(results.tasks)
    assert {entry.dataset_id for entry in entries(results.path.read_text()).values()} == {"walledai/AdvBench"}
    with_sources(run, harmful={"kind": "advbench", "path": "advbench.csv", "split": None})
    refused("export", "eval-results", run, "-o", tmp_path / "local", saying="--dataset OWNER/NAME")


def test_attacks_of_a_file_are_no_rows_of_the_goals_dataset(planted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    assert read_json(run / "resolved.json")["data"]["attack_file"] is not None
    with_sources(run, harmful={"kind": "dataset", "id": DATASET, "revision": "main"})
    results = write_hub_results(run, tmp_path / "hub")
    assert {"attack", "attack:story"} <= set(results.left_out)
    assert results.tasks == ("plain_refusal",)
    assert all(entry.dataset_revision is None for entry in entries(results.path.read_text()).values())


def test_the_model_folder_gets_the_same_file_where_a_dataset_is_known(planted_run: Path, tmp_path: Path) -> None:
    summary = read_json(planted_run / "summary.json")
    assert set(model_documents(RunFolder(planted_run), summary)) == {"README.md"}
    hub = {"kind": "dataset", "id": DATASET, "revision": None}
    run = with_sources(shutil.copytree(planted_run, tmp_path / "run"), harmful=hub)
    documents = model_documents(RunFolder(run), summary)
    assert documents[EVAL_RESULTS] == write_hub_results(run, tmp_path / "hub").path.read_text()


def test_a_single_evaluation_and_a_rate_without_a_scored_reply(tmp_path: Path) -> None:
    groups = {"plain": verdicts(3, 1), "attack:story": verdicts(0, 0, unscored=2)}
    folder = write_evaluation(tmp_path / "eval", groups, limit=4)
    results = write_hub_results(folder, tmp_path / "hub", dataset=DATASET)
    (entry,) = entries(results.path.read_text()).values()
    assert (entry.task_id, entry.value) == ("plain_refusal", 0.75)
    assert "Limited sample: at most 4 prompts of every group" in str(entry.notes)


def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    command = ("export", "eval-results", planted_run, "-o")
    new = tmp_path / "new"
    refused(*command, new, "--dataset", "walruses", saying="OWNER/NAME of a benchmark dataset on the Hub")
    refused(*command, new, "--dataset", DATASET, "--revision", "main", saying="40 hexadecimal digits")
    refused(*command, new, "--revision", COMMIT, saying="--revision needs --dataset")
    refused(*command, new, "--dataset", DATASET, "--source", "report.html", saying="--source is wrong")
    refused(*command, planted_run / "model", "--dataset", DATASET, saying="whose files are hashed")
    write_hub_results(planted_run, new, dataset=DATASET)
    refused(*command, new, "--dataset", DATASET, saying="got a file of that name")
    run = shutil.copytree(planted_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval-after", "summary.json"))
    refused("export", "eval-results", run, "-o", tmp_path / "b", "--dataset", DATASET, saying="before the repair alone")
