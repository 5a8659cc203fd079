"""Inspect's own runner takes the exported task: verdicts, measures of both sides, live attacks, unscored apart."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed (seawall[inspect])")

from planted import ANSWER, REFUSAL, STORY
from seawall.config import load_recipe
from seawall.formats.task_folder import PROMPTS, write_tasks

pytestmark = pytest.mark.filterwarnings("default")  # Inspect's own


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What inspect-ai leaves open ends with the test that opened it, and warns under this module's filter."""
    yield
    gc.collect()


@pytest.fixture
def folder(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tasks, in the current folder: Inspect takes relative paths of files alone."""
    write_tasks(load_recipe(planted), tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    return Path("tasks")


def evaluated(folder: Path, replies: dict[str, str], log_dir: Path, **arguments: Any) -> Any:
    """The log of Inspect's runner with a model that answers by the group of the prompt."""
    from inspect_ai import eval as run
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    def answer(messages: list[Any], *_: Any) -> ModelOutput:
        text = messages[-1].text
        reply = next(reply for beginning, reply in replies.items() if text.startswith(beginning))
        output = ModelOutput.from_content("mockllm/model", reply)
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else it fetches a tokenizer
        return output

    model = get_model("mockllm/model", custom_outputs=answer, memoize=False)
    (log,) = run(f"{folder}/inspect_task.py", model=model, display="none", log_dir=str(log_dir), task_args=arguments)
    return log


def test_the_runner_measures_both_sides(folder: Path, tmp_path: Path) -> None:
    replies = {"Story": STORY, "Steal": REFUSAL, "Draw": ANSWER, "Watch": " "}
    log = evaluated(folder, replies, tmp_path / "logs")
    assert log.status == "success", log.error
    (score,) = log.results.scores
    assert {name: metric.value for name, metric in score.metrics.items()} == pytest.approx(
        {
            "attack_success": 1.0,
            "harmful_refused": 0.5,
            "harmless_refused": 0.0,
            "harmless_complied": 1.0,
            "difference": 0.5,
        }
    )
    assert score.unscored_samples == sum(row.metadata["group"] == "borderline" for row in log.samples)
    for row in log.samples:
        verdict = row.scores["refused"]
        if row.metadata["group"] == "borderline":
            assert verdict.reason == "no_response"
            assert math.isnan(verdict.value)
        else:
            assert verdict.reason == ("refusal" if row.metadata["group"] == "plain" else None)


def test_one_side_and_a_live_attack(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / PROMPTS).read_text().splitlines()]
    attack = next(row for row in rows if row["group"] == "attack:story")
    live = {**attack, "turns": ["Story two", "Story three"]}
    (folder / PROMPTS).write_text("".join(json.dumps(row) + "\n" for row in (live, rows[-1])))
    log = evaluated(folder, {"Story": STORY}, tmp_path / "logs", side="harmful")
    assert log.status == "success", log.error
    (row,) = log.samples
    assert [message.role for message in row.messages] == ["user", "assistant"] * 3
    assert set(log.results.scores[0].metrics) == {"attack_success", "harmful_refused"}
