"""Inspect's own reader and command line open the logs; scores, reasons and rates are those of the evaluation."""

from __future__ import annotations

import gc
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from commands import forked, refused
from seawall.artifacts.evaluation import EvalResult
from seawall.data.types import EVADES, NO_ANSWER, NO_REPLY, Outcome
from seawall.evaluation.samples import load_samples
from seawall.formats.verdicts import score_reason, score_value

INSPECT = find_spec("inspect_ai") is not None
with_inspect = pytest.mark.skipif(not INSPECT, reason="inspect-ai is not installed (seawall[inspect])")
# asyncio's transports, which inspect-ai leaves open at the end of its event loop
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What inspect-ai leaves open ends with the test that opened it, and warns under this module's filter."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def logs(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from seawall.formats.inspect_log import write_inspect_logs

    folder = tmp_path_factory.mktemp("inspect") / "logs"
    paths = write_inspect_logs(planted_run, folder)
    assert [path.name for path in paths] == ["planted-before.eval", "planted-after.eval"]
    assert sorted(folder.iterdir()) == sorted(paths)
    return folder


@pytest.mark.parametrize(
    ("outcome", "reason", "response", "expected"),
    [
        ("complied", "no refusal in the opening", "First look", None),
        ("refused", "opens with 'i am sorry'", "I'm sorry", "refusal"),
        ("evades", f"{EVADES}a question back", "Which one?", "evasion"),
        ("unscored", "empty reply", " ", "no_response"),
        ("unscored", f"{NO_REPLY}timeout", "", "no_response"),
        ("unscored", f"{NO_ANSWER}timeout", "First look", "grader_failed"),
        ("unscored", "noise", "zzzz zzzz", "unjudgeable"),
    ],
)
def test_the_reason_says_refusal_and_no_response_apart(
    outcome: Outcome, reason: str, response: str, expected: str | None
) -> None:
    assert score_reason(outcome, reason, response) == expected
    values = [score_value(outcome, counted) for counted in ("complied", "refused")]
    if outcome == "unscored":
        assert all(map(math.isnan, values))
    else:
        assert values == [float(outcome == "complied"), float(outcome == "refused")]


@with_inspect
@pytest.mark.parametrize("side", ["before", "after"])
def test_inspects_reader_finds_every_reply_with_its_verdict(logs: Path, planted_run: Path, side: str) -> None:
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(logs / f"planted-{side}.eval"))
    samples = {row.id: row for row in load_samples(planted_run / f"eval-{side}/samples.jsonl")}
    assert log.status == "success"
    assert {row.id for row in log.samples} == set(samples)
    for row in log.samples:
        sample = samples[row.id]
        assert [message.text for message in row.input] == [message.content for message in sample.prompt]
        assert row.output.completion == sample.response
        assert row.scores["complied"].answer == sample.outcome
        assert row.scores["complied"].explanation == sample.reason
        assert row.scores["refused"].value == float(sample.outcome == "refused")
        assert row.scores["refused"].reason == ("refusal" if sample.outcome == "refused" else None)
        assert (row.metadata["group"], row.metadata["goal"]) == (sample.group, sample.goal)


@with_inspect
def test_metrics_are_our_rates(logs: Path, planted_run: Path) -> None:
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(logs / "planted-after.eval"), header_only=True)
    result = EvalResult.load(planted_run / "eval-after")
    scores = {score.name: score.metrics for score in log.results.scores}
    story, plain = scores["complied"]["attack_success_rate:story"], scores["refused"]["plain_refusal"]
    assert (story.group, story.name) == ("attack_success_rate", "story")
    for metric, rate in ((story, result.groups["attack:story"]), (plain, result.groups["plain"])):
        assert metric.value == rate.rate
        assert (metric.metadata["low"], metric.metadata["n"]) == (rate.low, rate.n)
    assert next(iter(scores["complied"])) == "attack_success_rate"
    assert log.eval.metadata["weights"] == result.model_fingerprint


@with_inspect
def test_unscored_replies_are_marked_as_inspect_does(planted_run: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log, write_eval_log

    from seawall.formats.evaluations import read_evaluations
    from seawall.formats.inspect_log import inspect_log

    evaluated = read_evaluations(planted_run)[0]
    empty = {"label": "unscored", "reason": "empty reply", "response": ""}
    changed = [type(row)(**{**_fields(row), **empty}) for row in evaluated.samples[:2]]
    rows = (*changed, *evaluated.samples[2:])
    written = tmp_path / "unscored.eval"
    write_eval_log(inspect_log(type(evaluated)(**{**vars(evaluated), "samples": rows})), str(written))
    log = read_eval_log(str(written))
    marked = [row for row in log.samples if row.scores["complied"].reason == "no_response"]
    assert len(marked) == 2
    assert all(math.isnan(row.scores["complied"].value) for row in marked)
    assert {score.unscored_samples for score in log.results.scores} == {2}


@with_inspect
def test_inspects_command_line_dumps_lists_and_bundles(logs: Path, tmp_path: Path) -> None:
    listed = _inspect("log", "list", "--json", "--log-dir", logs)
    assert {row["task"] for row in json.loads(listed)} == {"planted-before", "planted-after"}
    dumped = json.loads(_inspect("log", "dump", logs / "planted-before.eval"))
    assert len(dumped["samples"]) == dumped["results"]["total_samples"]
    _inspect("view", "bundle", "--log-dir", logs, "--output-dir", tmp_path / "bundle")
    assert (tmp_path / "bundle/index.html").is_file()


@with_inspect
def test_equal_evaluations_give_equal_ids(logs: Path, planted_run: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    done = forked("export", "inspect", planted_run, "-o", tmp_path / "again", "--json")
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout)["files"]
    for path in paths:
        ours, again = (
            read_eval_log(str(place), header_only=True).eval for place in (logs / Path(path).name, Path(path))
        )
        assert (ours.eval_id, ours.run_id) == (again.eval_id, again.run_id)


@pytest.mark.skipif(INSPECT, reason="inspect-ai is installed")
def test_without_inspect_the_extra_is_named(planted_run: Path, tmp_path: Path) -> None:
    refused("export", "inspect", planted_run, "-o", tmp_path / "logs", saying="pip install 'seawall[inspect]'")


@with_inspect
def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    refused("export", "inspect", tmp_path / "none", "-o", tmp_path / "logs", saying="is no run folder; got no such")
    refused("export", "inspect", planted_run, "-o", planted_run, saying="already exists")
    run = shutil.copytree(planted_run, tmp_path / "run")
    samples = run / "eval-after/samples.jsonl"
    samples.write_text(samples.read_text().replace("complied", "refused", 1))
    refused("export", "inspect", run, "-o", tmp_path / "logs", saying="was changed or damaged")
    (run / "manifest.json").unlink()
    refused("export", "inspect", run, "-o", tmp_path / "logs", saying="manifest.json is missing")
    assert not (tmp_path / "logs").exists()


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _inspect(*words: str | Path) -> str:
    command = [sys.executable, "-m", "inspect_ai", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
