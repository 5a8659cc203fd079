"""Two real runs, two real checkpoints, and what is neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seawall.artifacts.delta import Delta, DeltaOutline
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.config import load_recipe
from seawall.data.types import user
from seawall.errors import ArtifactError, RunFolderError
from seawall.evaluation.compare import compare, gold_increase
from seawall.jobs.diff import diff, difference_tables, document
from seawall.jobs.run import run_recipe
from seawall.models.files.difference import CheckpointDifference
from seawall.runs.progress import Quiet
from seawall.shell.difference import RunDifference, compare_experts, compare_runs
from seawall.shell.evaluated import open_evaluation
from seawall.shell.finished import FinishedRun, RunEvaluation, open_finished


@pytest.fixture(scope="module")
def other_run(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe with experts chosen at random, on the same prompts."""
    folder = tmp_path_factory.mktemp("other") / "run"
    quick = ("select.method=random", "repair.rounds=1", "repair.expert.epochs=1", "export.checkpoint=false")
    run_recipe(load_recipe(planted, quick), folder, text=planted.read_text(), reporter=Quiet())
    return folder


def runs(a: Path, b: Path) -> RunDifference:
    found = diff(a, b)
    assert isinstance(found, RunDifference)
    return found


def test_a_run_does_not_differ_from_itself(planted_run: Path) -> None:
    found = runs(planted_run, planted_run)
    assert found.experts.jaccard == 1.0
    assert not any(found.experts.only_a + found.experts.only_b)
    assert found.repairs[0] == found.repairs[1]
    assert all(row.change is not None and row.change.difference == 0 for row in found.groups)
    assert found.gold is not None
    assert found.gold.change is not None
    assert (found.gold.change.low, found.gold.change.high) == (0.0, 0.0)


def test_two_runs_are_told_apart(planted_run: Path, other_run: Path) -> None:
    found = runs(planted_run, other_run)
    a, b = (ExpertSet.load(folder / "select") for folder in (planted_run, other_run))
    for left, right, shared, only in zip(a.layers, b.layers, found.experts.shared, found.experts.only_b, strict=True):
        assert set(shared) == set(left) & set(right)
        assert set(only) == set(right) - set(left)
    deltas = [Delta.load(folder / "delta") for folder in (planted_run, other_run)]
    for facts, delta in zip(found.repairs, deltas, strict=True):
        assert (facts.base_model, facts.result_model) == (delta.base_model, delta.result_model)
        assert facts.tensors == len(delta.bits)
        assert facts.slices == sum(len(at) for at in delta.slices.values() if at is not None)
        assert len(facts.drift) == len(a.layers)
        assert facts.parameters == "selected"
    assert found.repairs[0].base_model == found.repairs[1].base_model
    assert found.repairs[0].result_model != found.repairs[1].result_model
    one, two = open_finished(planted_run), open_finished(other_run)
    wanted = compare(one.after.samples, two.after.samples, resamples=one.resamples, seed=one.seed)
    assert {row.group: row.change for row in found.groups} == {name: row.change for name, row in wanted.items()}
    assert found.gold is not None
    assert found.gold.change == gold_increase(
        one.after.result, two.after.result, resamples=one.resamples, seed=one.seed
    )


def test_groups_with_other_prompts_have_no_difference(planted_run: Path) -> None:
    one = open_finished(planted_run)

    def reworded(sample: Sample) -> Sample:
        return replace(sample, prompt=user("Something else")) if sample.group == "benign" else sample

    result = one.after.result
    later = RunEvaluation(replace(result, gold=result.gold[1:]), list(map(reworded, one.after.samples)))
    found = compare_runs(one, FinishedRun(one.run, one.recipe, one.summary, one.before, later))
    assert [row.group for row in found.groups if row.change is None] == ["benign"]
    assert found.gold is not None
    assert found.gold.change is None
    everything = [replace(sample, prompt=user("Something else")) for sample in one.after.samples]
    nothing = RunEvaluation(replace(result, gold_loss=None), everything)
    bare = compare_runs(one, FinishedRun(one.run, one.recipe, one.summary, one.before, nothing))
    assert all(row.change is None for row in bare.groups)
    assert bare.gold is None
    assert [table.row_count for table in difference_tables(bare)][1] == len(bare.groups)


def test_runs_that_were_measured_differently_have_no_differences_of_rates(
    planted_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another length of replies, or another template, would be counted as the work of the repair."""
    one = open_finished(planted_run)
    opened = open_evaluation(planted_run / "eval-after")
    longer = {**opened.recipe, "eval": {**opened.recipe["eval"], "max_new_tokens": 999}}
    for other, named, gold in (
        (replace(opened, recipe=longer), "eval.max_new_tokens", True),
        (replace(opened, inputs={**opened.inputs, "rendered": "sha256:other"}), "the rendering of prompts", False),
    ):
        sides = iter((opened, other))
        monkeypatch.setattr("seawall.shell.difference.open_evaluation", lambda _path, sides=sides: next(sides))
        found = compare_runs(one, one)
        assert named in found.unlike
        assert all(row.change is None for row in found.groups)
        assert found.gold is not None
        assert (found.gold.change is not None) == gold
        facts, rates = difference_tables(found)
        assert any("Measured differently" in str(cell) for cell in facts.columns[1].cells)
        assert "measured differently" in list(rates.columns[3].cells)


def test_a_run_of_a_limited_sample_is_named(planted_run: Path) -> None:
    one = open_finished(planted_run)
    limited = compare_runs(replace(one, summary={**one.summary, "limit": 20}), one)
    assert limited.limits == (20, None)
    facts, _ = difference_tables(limited)
    assert any("Limited sample: at most 20" in str(cell) for cell in facts.columns[1].cells)
    whole = next(difference_tables(runs(planted_run, planted_run)))
    assert not any("Limited" in str(cell) for cell in whole.columns[1].cells)


def test_base_and_repaired_checkpoint_differ_where_the_repair_was(planted: Path, planted_run: Path) -> None:
    found = diff(planted.parent / "model", planted_run / "model")
    assert isinstance(found, CheckpointDifference)
    chosen = ExpertSet.load(planted_run / "select").layers
    assert [tuple(layer.experts) for layer in found.layers] == list(chosen)
    assert all(0 < moved < 1 for layer in found.layers for moved in layer.experts.values())
    assert all(layer.router is not None for layer in found.layers)
    assert not found.others
    facts, layers = difference_tables(found)
    assert layers.row_count == len(chosen)
    assert facts.row_count == 7
    assert found.direction is not None
    assert not found.direction.abliterated
    same = diff(planted_run / "model", planted_run / "model")
    assert len(list(difference_tables(same))) == 1


def test_documents_are_json(planted: Path, planted_run: Path) -> None:
    written = document(diff(planted_run, planted_run))
    assert written["kind"] == "runs"
    checkpoints = document(diff(planted.parent / "model", planted_run / "model"))
    assert checkpoints["kind"] == "checkpoints"
    assert json.loads(json.dumps(checkpoints, allow_nan=False)) == checkpoints
    json.dumps(written, allow_nan=False)


def selection(*layers: tuple[int, ...], experts: int = 4) -> ExpertSet:
    return ExpertSet("sha256:x", "gap", 2, layers, torch.zeros(len(layers), experts))


def test_jaccard_by_hand() -> None:
    found = compare_experts(selection((0, 1), (2,)), selection((1, 3), ()))
    assert found.jaccard == 1 / 4
    assert (found.shared, found.only_a, found.only_b) == (((1,), ()), ((0,), (2,)), ((3,), ()))
    assert compare_experts(selection((), ()), selection((), ())).jaccard == 1.0
    with pytest.raises(ArtifactError, match="got 2 MoE layers x 4 experts and 1 MoE layers x 8 experts"):
        compare_experts(selection((), ()), selection((), experts=8))


def test_what_cannot_be_compared_is_refused(planted: Path, planted_run: Path, tmp_path: Path) -> None:
    for folder, got in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, "a folder without either file"),
        (planted, "a file"),
    ):
        with pytest.raises(RunFolderError, match=f"is neither an evaluation nor a run nor a checkpoint; got {got}"):
            diff(planted_run, folder)
    with pytest.raises(RunFolderError, match=r"is a run and .* a checkpoint; expected two evaluations, two runs"):
        diff(planted_run, planted_run / "model")
    begun = tmp_path / "begun"
    run_recipe(load_recipe(planted), begun, text="", reporter=Quiet(), until="select")
    with pytest.raises(RunFolderError, match="is not finished"):
        diff(planted_run, begun)


def test_the_outline_of_a_delta_needs_no_bits(planted_run: Path, tmp_path: Path) -> None:
    whole = Delta.load(planted_run / "delta")
    (tmp_path / "delta.json").write_bytes((planted_run / "delta" / "delta.json").read_bytes())
    outline = DeltaOutline.load(tmp_path)
    assert (outline.base_model, outline.result_model) == (whole.base_model, whole.result_model)
    assert outline.slices == whole.slices
    (tmp_path / "delta.json").write_text((tmp_path / "delta.json").read_text().replace("slices", "sliced"))
    with pytest.raises(ArtifactError, match="is damaged or was changed"):
        DeltaOutline.load(tmp_path)
