"""Two evaluations side by side: the numbers of a run, and what may not be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluations import samples, verdicts, write_evaluation
from seawall.errors import ArtifactError, RunFolderError
from seawall.evaluation.compare import compare
from seawall.evaluation.gate import Bounds
from seawall.jobs.diff import diff, difference_tables, document
from seawall.jobs.evaluated import write_evaluation_page
from seawall.jobs.gate import gate_evaluation
from seawall.shell.comparison import EvaluationDifference
from seawall.shell.evaluated import open_evaluation

BASE = {"plain": verdicts(28, 2), "attack:story": verdicts(15, 15), "benign": verdicts(0, 20)}
TUNED = {"plain": verdicts(8, 20, 2), "attack:story": verdicts(14, 16), "benign": verdicts(1, 19)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "base", BASE, losses=[0.5, 0.7])


def tuned(folder: Path, **changes: Any) -> Path:
    return write_evaluation(folder / "tuned", **{"groups": TUNED, "weights": "sha256:b", **changes})


def compared(a: Path, b: Path, *, across_templates: bool = False) -> EvaluationDifference:
    difference = diff(a, b, across_templates=across_templates)
    assert isinstance(difference, EvaluationDifference)
    return difference


def test_rates_and_paired_changes_are_those_of_a_run(base: Path, tmp_path: Path) -> None:
    difference = compared(base, tuned(tmp_path, losses=[0.6, 0.8]))
    expected = compare(samples(BASE), samples(TUNED), resamples=200, seed=0)
    assert {row.group: row.change for row in difference.groups} == {
        name: comparison.change for name, comparison in expected.items()
    }
    plain = difference.groups[0]
    assert plain.change is not None
    assert plain.change.is_clear
    assert (plain.b.unscored, plain.change.became_unscored, plain.change.goals) == (2, 2, 28)
    assert difference.moves["plain"] == {"refused -> complied": 20, "complied -> unscored": 2}
    assert difference.gold is not None
    assert difference.gold.change is not None
    assert difference.gold.change.increase == pytest.approx(1.4 / 1.2 - 1)
    assert difference.notes == ()
    facts, measures = difference_tables(difference)
    assert (facts.row_count, measures.row_count) == (2, 4)
    written = document(difference)
    assert written["kind"] == "evaluations"
    assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_the_same_weights_are_told(base: Path) -> None:
    difference = compared(base, base)
    assert difference.notes == ("A and B have the same weights.",)
    assert all(row.change is not None and row.change.difference == 0 for row in difference.groups)


def test_groups_of_one_evaluation_alone_are_named_and_not_compared(base: Path, tmp_path: Path) -> None:
    plain = tuned(tmp_path, groups={"plain": TUNED["plain"], "borderline": verdicts(1, 3)})
    difference = compared(base, plain)
    assert [row.group for row in difference.groups] == ["plain"]
    assert (difference.only_a, difference.only_b) == (("attack:story", "benign"), ("borderline",))
    assert difference.gold is None
    apart = write_evaluation(tmp_path / "apart", {"borderline": verdicts(1, 3)})
    with pytest.raises(ArtifactError, match="share no group"):
        diff(base, apart)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"max_new_tokens": 32}}, r"eval\.max_new_tokens \(24 and 32\)"),
        ({"settings": {"judge": {"kind": "guard", "model": "g"}}}, r"eval\.judge\.kind \(keyword and guard\)"),
        ({"inputs": {"judge_state": {"rules": 3}}}, r"judge\.rules \(2 and 3\)"),
    ],
)
def test_other_measuring_settings_are_refused_by_name(
    base: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArtifactError, match=f"measured differently; got {named}"):
        diff(base, tuned(tmp_path, **changes))


def test_how_a_judge_is_reached_may_differ(tmp_path: Path) -> None:
    first, second = (
        write_evaluation(tmp_path / name, BASE, settings={"judge": {"kind": "rubric", "model": "m", "attempts": count}})
        for name, count in (("a", 2), ("b", 3))
    )
    assert compared(first, second).notes == ("A and B have the same weights.",)


def test_partly_other_prompts_are_refused_with_the_numbers(base: Path, tmp_path: Path) -> None:
    fewer = tuned(tmp_path, groups={**TUNED, "plain": verdicts(3, 7)})
    with pytest.raises(ArtifactError, match=r"got plain refusal: 10 shared of 30 and 10; expected"):
        diff(base, fewer)


def test_another_template_is_refused_unless_asked_for(base: Path, tmp_path: Path) -> None:
    other = tuned(tmp_path, inputs={"rendered": "sha256:other", "computing": {"dtype": "bf16", "experts": "None"}})
    with pytest.raises(ArtifactError, match="--across-templates"):
        diff(base, other)
    notes = compared(base, other, across_templates=True).notes
    assert notes[0] == "A and B render prompts differently (chat template, its options or tokenizer)."
    assert notes[1] == "A was computed with settings that are not known, B with dtype bf16."


ZERO_SHOT = {"tasks": [{"kind": "choice", "path": "a.jsonl"}], "num_fewshot": 0, "margin": 0.02, "batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({"settings": {"capability": {**ZERO_SHOT, "batch_size": 2, "margin": 0.1}}}, True),
        ({"settings": {"capability": {**ZERO_SHOT, "tasks": [{"kind": "choice", "path": "b.jsonl"}]}}}, True),
        ({"settings": {"capability": {**ZERO_SHOT, "num_fewshot": 5}}}, False),
        ({"settings": {"capability": {**ZERO_SHOT, "chat_template": True}}}, False),
        ({"settings": {"capability": ZERO_SHOT, "seed": 1}}, False),
        ({"settings": {"capability": ZERO_SHOT}, "inputs": {"capability": ["sha256:examples"]}}, False),
    ],
)
def test_scores_that_were_asked_differently_are_neither_compared_nor_held_to_a_bound(
    tmp_path: Path, changes: dict[str, Any], alike: bool
) -> None:
    first = write_evaluation(tmp_path / "a", BASE, settings={"capability": ZERO_SHOT})
    second = write_evaluation(tmp_path / "b", BASE, **changes)
    difference, bounds = compared(first, second), Bounds(max_capability_drop=1.0)
    assert bool(difference.scores) == alike
    assert any("Capability is left out" in note for note in difference.notes) != alike
    if alike:
        assert gate_evaluation(second, bounds, against=first).passed
        return
    with pytest.raises(ArtifactError, match="scores of capability were measured differently"):
        gate_evaluation(second, bounds, against=first)


def test_a_sample_that_is_there_twice_pairs_with_nothing() -> None:
    before = samples(BASE)
    with pytest.raises(ArtifactError, match="got 80 and 81 samples"):
        compare(before, [*before, before[0]])


def test_the_evaluations_within_a_run_can_be_compared(planted_run: Path) -> None:
    difference = compared(planted_run / "eval-before", planted_run / "eval-after")
    summary = json.loads((planted_run / "summary.json").read_text())
    changes = {row.group: row.change for row in difference.groups}
    story = changes["attack:story"]
    assert story is not None
    assert story.difference == summary["attacks"]["story"]["change"]["difference"]
    assert difference.a.model.endswith("(eval-before)")
    assert difference.wrapping == ()


def test_folders_of_two_kinds_are_refused_with_the_remedy(base: Path, planted_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is an evaluation and .* a run; .*RUN/eval-before or RUN/eval-after"):
        diff(base, planted_run)
    with pytest.raises(RunFolderError, match=r"a checkpoint; .*seawall eval --model FOLDER"):
        diff(base, planted_run / "model")
    with pytest.raises(RunFolderError, match="holds no evaluation; got a run"):
        open_evaluation(planted_run)
    shutil.rmtree(base / "eval")
    with pytest.raises(RunFolderError, match="is not finished"):
        diff(base, base)


def test_a_changed_verdict_is_refused(base: Path, tmp_path: Path) -> None:
    path = base / "eval" / "samples.jsonl"
    path.write_text(path.read_text().replace("complied", "refused"))
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        diff(base, tuned(tmp_path))


def test_a_limited_sample_is_named_in_diff_page_and_gate(tmp_path: Path) -> None:
    groups = {"plain": verdicts(30, 10)}
    limited = write_evaluation(tmp_path / "a", groups, limit=40)
    whole = write_evaluation(tmp_path / "b", groups, weights="sha256:b")
    difference = compared(limited, whole)
    assert difference.notes[0].startswith("Limited sample: at most 40 prompts of every group")
    assert "Limited sample: at most 40" in write_evaluation_page(limited).read_text()
    assert "Limited sample" not in write_evaluation_page(whole).read_text()
    assert gate_evaluation(limited, Bounds(min_plain_refusal=0.5)).document()["limit"] == 40
