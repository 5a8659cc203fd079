"""Capability: local files as tasks of lm-evaluation-harness, paired question by question."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from families import tiny, tiny_tokenizer
from seawall.artifacts.evaluation import CapabilityScore, EvalResult
from seawall.config import load_recipe
from seawall.config.capability import AnswerTask, CapabilityConfig, ChoiceTask
from seawall.data.types import VerdictLabel
from seawall.errors import ArtifactError, ConfigError, DataError
from seawall.evaluation.capability import harness
from seawall.evaluation.capability.records import to_records, to_scores
from seawall.evaluation.capability.rows import local_rows, template
from seawall.evaluation.capability.run import check_capability, measure_capability
from seawall.evaluation.compare import capability_changes
from seawall.evaluation.gate import Bounds, Check, Evidence, check_bounds
from seawall.evaluation.intervals import exact_interval
from seawall.evaluation.metrics import paired_difference, paired_score_difference

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed (pip install 'seawall[capability]')",
)
QUESTIONS = [
    {"question": f"Which letter is number {at}?", "choices": ["x", "y", "z", 7], "answer": "ABCD"[at % 4]}
    for at in range(10)
]
SUMS = [{"question": f"What is {at} + 1?", "answer": f"Add 1 to {at}.\n#### {at + 1:,}"} for at in (1, 2, 1233)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "letters.jsonl", QUESTIONS)


def choice(path: Path, **more: Any) -> ChoiceTask:
    return ChoiceTask(path=str(path), **more)


def config(*tasks: Any, **more: Any) -> CapabilityConfig:
    return CapabilityConfig(tasks=tasks, batch_size=4, **more)


# Configuration and files


def test_a_bare_name_is_a_task_of_the_harness(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("eval:\n  capability:\n    tasks: [gsm8k, {kind: choice, path: data/my mmlu.jsonl}]\n")
    found = load_recipe(recipe).eval.capability
    assert found is not None
    assert [(task.kind, task.label) for task in found.tasks] == [("harness", "gsm8k"), ("choice", "my-mmlu")]
    assert load_recipe(None).eval.capability is None


@pytest.mark.parametrize(
    ("section", "saying"),
    [
        ("{tasks: []}", "eval.capability.tasks"),
        ("{}", "eval.capability"),
        ("{tasks: [gsm8k], margin: 0}", "eval.capability.margin"),
        ("{tasks: [gsm8k, gsm8k]}", "tasks with different names"),
        ("{tasks: [../gsm8k]}", "names a file"),
        ("{tasks: [{kind: choice, path: a.jsonl}], num_fewshot: 2}", "`shots`"),
        ("{tasks: [{kind: essay, path: a.jsonl}]}", "eval.capability.tasks"),
    ],
)
def test_wrong_sections_are_told_by_key(tmp_path: Path, section: str, saying: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"eval:\n  capability: {section}\n")
    with pytest.raises(ConfigError, match=re.escape(saying)):
        load_recipe(recipe)


def test_rows_become_what_the_template_takes(letters: Path, tmp_path: Path) -> None:
    rows = local_rows(choice(letters), str(letters))
    assert rows[2] == {
        "question": "Which letter is number 2?",
        "choices": ["x", "y", "z", "7"],
        "letters": ["A", "B", "C", "D"],
        "answer": 2,
    }
    sums = jsonl(tmp_path / "sums.jsonl", SUMS)
    assert [row["number"] for row in local_rows(AnswerTask(path=str(sums)), str(sums))] == ["2", "3", "1,234"]


def test_some_rows_are_chosen_by_hash_and_not_by_place(letters: Path, tmp_path: Path) -> None:
    chosen = local_rows(choice(letters), str(letters), at_most=4)
    turned = jsonl(tmp_path / "turned.jsonl", QUESTIONS[::-1])
    again = local_rows(choice(turned), str(turned), at_most=4)
    assert len(chosen) == 4
    assert sorted(row["question"] for row in chosen) == sorted(row["question"] for row in again)
    assert chosen != local_rows(choice(letters), str(letters))[:4]


@pytest.mark.parametrize(
    ("row", "saying"),
    [
        ({"choices": ["a", "b"], "answer": "A"}, r"rows\.jsonl:1: field 'question' is missing"),
        ({"question": "?", "choices": ["a"], "answer": "A"}, "holds no choices.*expected a list of 2 to 26"),
        ({"question": "?", "choices": ["a", ""], "answer": "A"}, "holds no choices"),
        (
            {"question": "?", "choices": ["a", "b"], "answer": "C"},
            "got 'C'; expected a letter from A to B",
        ),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "names no choice; got 2"),
        ({"question": "?", "choices": ["a", "b"], "answer": True}, "names no choice"),
        ({"question": "?", "choices": ["a", "b"]}, "names no choice; got None"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, row: dict[str, Any], saying: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=saying):
        local_rows(choice(path), str(path))


def test_an_answer_without_a_number_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"question": "?", "answer": "12 ways #### none"}])
    with pytest.raises(DataError, match="holds no number"):
        local_rows(AnswerTask(path=str(path)), str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        local_rows(AnswerTask(path=str(path)), str(path))


def test_without_the_harness_one_line_says_what_to_install(letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"got no package lm_eval; pip install"):
        check_capability(config(choice(letters)))


# Records and scores, from what the harness logs


def logged(values: dict[str, list[Any]], *, reported: dict[str, float], metric: str = "acc") -> harness.HarnessLog:
    return harness.HarnessLog(
        samples={
            task: [
                {
                    "doc_id": at,
                    "doc_hash": f"{task}{at:020d}",
                    "filter": "none",
                    "arguments": [("question", "A")],
                    "target": 0,
                    "resps": [["x"]],
                    "filtered_resps": ["x"],
                    "metrics": [metric],
                    metric: value,
                }
                for at, value in enumerate(rows)
            ]
            for task, rows in values.items()
        },
        reported={task: {f"{metric},none": value} for task, value in reported.items()},
        higher_is_better={task: {metric: True} for task in values},
    )


def test_a_group_is_scored_over_all_its_questions() -> None:
    found = logged({"a": [1, 0], "b": [1, 1, 1, 0]}, reported={"a": 0.5, "b": 0.75})
    (score,) = to_scores("group", to_records("group", found))
    assert (score.task, score.metric, score.score, score.n) == ("group", "acc", 4 / 6, 6)
    assert score.stderr == pytest.approx(np.std([1, 0, 1, 1, 1, 0], ddof=1) / np.sqrt(6))
    assert len(set(score.ids)) == 6


@pytest.mark.parametrize(
    "values", [[(0, 1), (1, 1)], [-3.2, -1.0], [0.5, 2.0]], ids=["pairs", "log-likelihoods", "above one"]
)
def test_metrics_that_are_no_means_of_shares_are_left_out(values: list[Any]) -> None:
    with pytest.raises(ConfigError, match="no metric of the task odd"):
        to_records("odd", logged({"odd": values}, reported={"odd": 0.5}))


def test_a_metric_that_the_harness_aggregates_otherwise_is_left_out() -> None:
    with pytest.raises(ConfigError, match="no metric"):
        to_records("odd", logged({"odd": [0.0, 1.0]}, reported={"odd": 0.7}))


# Before and after


def result(values: list[float], *, higher: bool = True, task: str = "t") -> EvalResult:
    ids = tuple(f"q{at}" for at in range(len(values)))
    score = CapabilityScore(task, "acc", higher, float(np.mean(values)), 0.0, ids, tuple(values))
    return EvalResult("sha256:x", {}, gold_loss=None, gold_n=0, samples="samples.jsonl", capability=(score,))


def test_scores_are_paired_as_verdicts_are() -> None:
    generator = np.random.default_rng(3)
    before, after = (generator.integers(0, 2, 60).tolist() for _ in range(2))
    names = [f"q{at:03d}" for at in range(60)]
    labels: list[list[VerdictLabel]] = [
        ["complied" if value else "refused" for value in side] for side in (before, after)
    ]
    scores = paired_score_difference(before, after, resamples=300)
    assert scores == paired_difference(labels[0], labels[1], names, target="complied", resamples=300)


def test_many_questions_take_little_memory_and_the_same_stream() -> None:
    before = np.random.default_rng(0).integers(0, 2, 15_000).tolist()
    moved = paired_score_difference(before, [1 - value for value in before[:300]] + before[300:], resamples=300)
    assert abs(moved.difference) < 0.02
    assert moved.low < moved.difference < moved.high
    assert moved.high - moved.low == pytest.approx(2 * 1.96 * np.sqrt(300) / 15_000, rel=0.2)


@pytest.mark.parametrize(
    ("lost", "of", "verdict"),
    [(0, 400, "non-inferior"), (200, 400, "inferior"), (0, 20, "unclear"), (8, 400, "unclear")],
)
def test_non_inferiority_is_decided_by_the_interval(lost: int, of: int, verdict: str) -> None:
    (change,) = capability_changes(result([1.0] * of), result([0.0] * lost + [1.0] * (of - lost)))
    assert change.lost[0] == pytest.approx(lost / of)
    assert change.lost[1] <= change.lost[0] <= change.lost[2]
    assert change.verdict(0.02) == verdict


@pytest.mark.parametrize("of", [2, 12, 40, 100])
def test_a_question_that_turned_right_is_no_proof_that_nothing_was_lost(of: int) -> None:
    (change,) = capability_changes(result([0.0] * of), result([1.0] + [0.0] * (of - 1)))
    assert change.change.low < 0 < change.change.difference
    assert change.verdict(0.02) == "unclear"


def test_where_lower_is_better_a_rise_is_a_loss() -> None:
    (change,) = capability_changes(result([0.0] * 50, higher=False), result([1.0] * 50, higher=False))
    assert change.lost[0] == 1.0
    assert change.verdict(0.02) == "inferior"


def test_other_questions_cannot_be_compared() -> None:
    with pytest.raises(ArtifactError, match=r"different capability questions; got \d+ and \d+ scores"):
        capability_changes(result([1.0, 0.0]), result([1.0, 0.0, 1.0]))


def gated(limit: float, before: EvalResult, after: EvalResult) -> list[Check]:
    evidence = Evidence([], [], (before, after), frozenset(), resamples=500, seed=0)
    return check_bounds(Bounds(max_capability_drop=limit), evidence)


def test_the_gate_holds_every_score_to_the_end_of_its_interval() -> None:
    (same,) = gated(0.02, result([1.0] * 400), result([1.0] * 400))
    assert (same.group, same.measured, same.n) == ("capability:t acc", 0.0, 400)
    assert same.decisive == pytest.approx(exact_interval(0, 400)[1])
    assert same.passed
    (few,) = gated(0.02, result([1.0] * 20), result([1.0] * 20))
    assert few.undecided
    (worse,) = gated(0.02, result([1.0] * 400), result([0.0] * 40 + [1.0] * 360))
    assert worse.measured == pytest.approx(0.1)
    assert not worse.passed
    assert not worse.undecided


def test_scores_survive_saving_and_older_files_load(tmp_path: Path) -> None:
    kept = result([1.0, 0.5])
    kept.save(tmp_path)
    assert EvalResult.load(tmp_path) == kept


# The harness itself


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("olmoe")


@pytest.fixture
def measured(model: PreTrainedModel, tmp_path: Path) -> Callable[..., tuple[CapabilityScore, ...]]:
    def measure(*tasks: Any, folder: Path = tmp_path, **more: Any) -> tuple[CapabilityScore, ...]:
        return measure_capability(model, tiny_tokenizer(), config(*tasks, **more), seed=0, folder=folder)

    return measure


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_most_likely_letter_is_the_models_answer(
    model: PreTrainedModel, measured: Callable[..., tuple[CapabilityScore, ...]], letters: Path
) -> None:
    """The harness's accuracy against log-likelihoods computed here."""
    tokenizer = tiny_tokenizer()
    (score,) = measured(choice(letters))
    expected = []
    for row in local_rows(choice(letters), str(letters)):
        listed = "".join(f"{letter}. {text}\n" for letter, text in zip(row["letters"], row["choices"], strict=True))
        asked = tokenizer(f"{row['question']}\n{listed}Answer:")["input_ids"]
        totals = []
        for letter in row["letters"]:
            whole = tokenizer(f"{row['question']}\n{listed}Answer: {letter}")["input_ids"]
            with torch.no_grad():
                logits_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            totals.append(sum(float(logits_TV[at - 1, whole[at]]) for at in range(len(asked), len(whole))))
        expected.append(float(int(np.argmax(totals)) == row["answer"]))
    assert (score.task, score.metric, score.n) == ("letters", "acc", 10)
    assert list(score.values) == expected
    assert score.score == np.mean(expected)


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replies_are_kept_and_a_task_that_is_done_is_not_asked_again(
    measured: Callable[..., tuple[CapabilityScore, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = jsonl(tmp_path / "sums.jsonl", SUMS)
    task = AnswerTask(path=str(sums), shots=str(sums), max_new_tokens=4)
    first = measured(task, num_fewshot=1)
    assert [(one.metric, one.n) for one in first] == [("exact_match,last-number", 3)]
    rows = [json.loads(line) for line in (tmp_path / "capability" / "sums.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"].count("Question:") == 2
    assert rows[0]["prompt"].startswith("Question: What is 1 + 1?\nAnswer: Add 1 to 1.\n#### 2\n\nQuestion:")
    ((reply,),) = rows[0]["replies"]
    assert isinstance(reply, str)
    monkeypatch.setattr("seawall.evaluation.capability.run.run_task", lambda *_, **__: pytest.fail("asked again"))
    assert measured(task, num_fewshot=1) == first


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("reply", "number", "right"),
    [
        ("It is 5, no, 1,234.", "1234", True),
        ("#### $12.", "12", True),
        ("12.00", "12", True),
        ("12.50", "12", False),
        ("-3", "3", False),
        ("no idea", "3", False),
    ],
)
def test_the_last_number_of_a_reply_counts(reply: str, number: str, right: bool, tmp_path: Path) -> None:
    sums = jsonl(tmp_path / "sums.jsonl", [{"question": "?", "answer": number}])
    task = AnswerTask(path=str(sums))
    (loaded,) = harness._load(task, config(task))["tasks"].values()
    loaded.build_all_requests(limit=1, rank=0, world_size=1)
    (instance,) = loaded.instances
    instance.resps = [reply]
    loaded.apply_filters()
    (doc,) = loaded.test_docs()
    found = loaded.process_results(doc, [instance.filtered_resps["last-number"]])
    assert found["exact_match"] == float(right)


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_is_left_changed(
    model: PreTrainedModel, measured: Callable[..., tuple[CapabilityScore, ...]], letters: Path
) -> None:
    def states() -> list[Any]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), model.training]

    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    before = states()
    measured(choice(letters), limit=2)
    assert states() == before
    model.eval()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


GROUP = """\
group: both
task: [one, two]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
MEMBER = """\
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [A, B, C, D]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def named(tmp_path: Path, letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness knows a group of two tasks, and one task whose data are nowhere."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "both.yaml").write_text(GROUP)
    for name, file in (("one", letters), ("two", letters), ("gone", tmp_path / "gone.jsonl")):
        text = MEMBER.replace("NAME", name).replace("FILE", str(file)).replace("CACHE", str(tmp_path / "cache"))
        (folder / f"{name}.yaml").write_text(text)
        if name == "one":
            (folder / "unsafe.yaml").write_text(text.replace("task: one", "task: unsafe") + "unsafe_code: true\n")
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    monkeypatch.setattr(harness, "_manager", lambda *, defaults: manager)


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("named")
def test_a_named_group_is_one_score_over_the_questions_of_its_tasks(
    measured: Callable[..., tuple[CapabilityScore, ...]], tmp_path: Path
) -> None:
    check_capability(config("both"))
    (score,) = measured("both", limit=4, num_fewshot=0)
    assert (score.task, score.metric, score.n) == ("both", "acc", 8)
    assert {one.split("/")[0] for one in score.ids} == {"one", "two"}
    assert (tmp_path / "capability" / "both.jsonl").is_file()


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("named")
def test_unknown_names_and_data_that_are_nowhere_are_one_line(
    measured: Callable[..., tuple[CapabilityScore, ...]],
) -> None:
    with pytest.raises(ConfigError, match="does not know; got bothh; expected perhaps both"):
        check_capability(config("bothh"))
    with pytest.raises(ConfigError, match="cannot load the task gone; got FileNotFoundError"):
        measured("gone")
    with pytest.raises(ConfigError, match=r"task unsafe .*; got a task that runs the model's code"):
        measured("unsafe")


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_too_few_examples_are_refused(measured: Callable[..., tuple[CapabilityScore, ...]], letters: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_fewshot .*; got 11; expected at most 10"):
        measured(choice(letters, shots=str(letters)), num_fewshot=11)


def test_templates_hold_what_the_configuration_says(letters: Path) -> None:
    assert template(choice(letters))["task"] == "letters"
    asked = template(AnswerTask(path=str(letters), name="sums", max_new_tokens=7, shots="s.jsonl"))
    assert (asked["task"], asked["fewshot_split"]) == ("sums", "shots")
    assert asked["generation_kwargs"]["max_gen_toks"] == 7
