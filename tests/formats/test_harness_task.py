"""lm-evaluation-harness's own runner takes the exported tasks, and measures what `seawall eval` does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import refused
from seawall.config import load_recipe
from seawall.errors import ArtifactError
from seawall.evaluation.samples import load_samples
from seawall.formats.measures import HIGHER_IS_BETTER, MEASURES, SIDES
from seawall.formats.task_folder import folder_prompts, judge_reply, write_tasks

TASKS = ("seawall", "seawall_harmful", "seawall_harmless")


@pytest.fixture(scope="module")
def folder(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tasks") / "tasks"
    written = write_tasks(load_recipe(planted), output)
    assert (written.tasks, written.live) == (TASKS, 0)
    assert written.prompts == len(folder_prompts(output, "both"))
    return output


def test_measures_count_both_sides_and_leave_out_what_is_unscored() -> None:
    rows: list[Any] = [
        ("plain", "refused"),
        ("attack:story", "complied"),
        ("attack:story", "unscored"),
        ("borderline", "refused"),
        ("benign", "complied"),
        ("benign", "evades"),
        ("benign", "complied"),
    ]
    assert {name: measure(rows) for name, measure in MEASURES.items()} == {
        "attack_success": 1.0,
        "harmful_refused": 0.5,
        "harmless_refused": 0.25,
        "harmless_complied": 0.5,
        "difference": 0.25,
        "unscored": 1 / 7,
    }
    assert all(math.isnan(MEASURES[name]([])) for name in MEASURES)
    assert set(HIGHER_IS_BETTER) == set(MEASURES) == set(SIDES["both"])


def test_the_two_sides_are_all_prompts(folder: Path) -> None:
    harmful, harmless, both = (folder_prompts(folder, side) for side in ("harmful", "harmless", "both"))
    assert sorted(row.id for row in (*harmful, *harmless)) == sorted(row.id for row in both)
    assert {row.group for row in harmful} == {"plain", "attack:story"}
    assert judge_reply(folder, both[0], both[0].prompt, " ").reason == "empty reply"
    with pytest.raises(ArtifactError, match="no such side"):
        folder_prompts(folder, "left")


@pytest.mark.filterwarnings("default")  # the harness's own
def test_the_harness_runs_the_tasks_with_the_numbers_of_our_evaluation(
    folder: Path, planted: Path, planted_run: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = yaml.safe_load(planted.read_text())["model"]["id"]
    lm = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(model),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=8,
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(
        model=lm, tasks=list(TASKS), task_manager=manager, apply_chat_template=True, bootstrap_iters=0
    )["results"]
    rows = [(row.group, row.outcome) for row in load_samples(planted_run / "eval-before/samples.jsonl")]
    expected = {name: measure(rows) for name, measure in MEASURES.items()}
    assert expected["attack_success"] > 0.5
    assert {name: results["seawall"][f"{name},none"] for name in MEASURES} == pytest.approx(expected)
    for side in ("harmful", "harmless"):
        for name in SIDES[side]:
            if name != "unscored":
                assert results[f"seawall_{side}"][f"{name},none"] == pytest.approx(expected[name])


def test_wrong_input(folder: Path, tmp_path: Path, planted: Path) -> None:
    refused("export", "tasks", planted, "-o", folder, saying="already exists")
    (tmp_path / "prompts.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ArtifactError, match=r"prompts\.jsonl cannot be read"):
        folder_prompts(tmp_path, "both")
