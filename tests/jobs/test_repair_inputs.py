"""The training examples of a repair, from a finished profile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from planted import FEW_PROMPTS
from seawall.config import load_recipe
from seawall.config.repair import RepairConfig
from seawall.data.sets import load_prompts
from seawall.data.templating import encode_prompt
from seawall.jobs.run import run_recipe
from seawall.methods.rasa.context import repair_inputs
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.shell.context import Context


@pytest.fixture
def context(planted: Path, planted_run: Path, tmp_path: Path) -> Context:
    recipe = load_recipe(planted)
    folder = shutil.copytree(planted_run, tmp_path / "run")
    return Context(recipe, RunFolder(folder), Quiet(), load_prompts(recipe.data), verbs=("run",))


def test_every_attack_has_a_twin_that_is_answered_in_its_own_wrapping(context: Context, tmp_path: Path) -> None:
    settings = RepairConfig.model_validate({"retain": {"per_batch": 2, "twins": 2}})
    inputs = repair_inputs(context, settings, tmp_path)
    assert len(inputs.twins) == len(inputs.refusals) == len(inputs.pairs)
    assert any(inputs.twins)
    prompts = context.prompts
    harmless = {item.text for item in prompts.benign.train} | {item.text for item in prompts.borderline.train}
    for pair, positions in zip(inputs.pairs, inputs.twins, strict=True):
        for position in positions:
            twin = inputs.retain[position].prompt[-1].content
            assert any(text.strip(".?! ")[1:] in twin for text in harmless)
            assert len(inputs.retain[position].prompt) == len(pair.attack)
    assert not inputs.teachers


def test_under_consistency_the_reply_to_the_plain_request_is_the_target(context: Context, tmp_path: Path) -> None:
    settings = RepairConfig.model_validate({"objective": "consistency", "retain": {"per_batch": 2, "twins": 1}})
    inputs = repair_inputs(context, settings, tmp_path)
    assert len(inputs.teachers) == len(inputs.refusals) + len(inputs.retain)
    assert list(inputs.teachers[: len(inputs.pairs)]) == [pair.plain for pair in inputs.pairs]
    taught = {position for positions in inputs.twins for position in positions}
    for position, plain in enumerate(inputs.teachers[len(inputs.pairs) :]):
        assert (plain is not None) == (position in taught)


def test_a_harmless_request_that_attacks_share_is_asked_once(context: Context, tmp_path: Path) -> None:
    settings = RepairConfig.model_validate({"objective": "consistency", "retain": {"per_batch": 2, "twins": 8}})
    inputs = repair_inputs(context, settings, tmp_path)
    rows = map(json.loads, (tmp_path / "twin_answers.jsonl").read_text().splitlines())
    answered = {tuple(row["prompt_ids"]): row["text"].strip() for row in rows}
    lines = len((tmp_path / "twin_answers.jsonl").read_text().splitlines())
    taught = {position for positions in inputs.twins for position in positions}
    assert len(answered) == lines < len(taught)
    tokenizer = context.opened.tokenizer
    for position in taught:
        plain = inputs.teachers[len(inputs.pairs) + position]
        assert plain is not None
        assert inputs.retain[position].response == answered[tuple(encode_prompt(tokenizer, plain))]


def test_plain_refusals_are_retained_once_per_goal(context: Context, tmp_path: Path) -> None:
    plain = RepairConfig.model_validate({"retain": {"per_batch": 2}})
    wider = RepairConfig.model_validate({"retain": {"per_batch": 2, "plain_refusals": True}})
    before, after = (repair_inputs(context, settings, tmp_path) for settings in (plain, wider))
    added = list(after.retain)[len(before.retain) :]
    assert {exchange.prompt for exchange in added} == {pair.plain for pair in after.pairs}
    assert len(added) == len({pair.goal for pair in after.pairs})
    assert all(exchange.response for exchange in added)


def test_a_repair_by_consistency_with_twins_runs_to_its_choice(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = (*FEW_PROMPTS, "repair.objective=consistency", "repair.retain.twins=1", "repair.rounds=1")
    run_recipe(load_recipe(planted, changes), folder, text=planted.read_text(), reporter=Quiet(), until="repair")
    outcome = read_json(folder / "repair" / "outcome.json")
    assert len(outcome["rounds"]) == 1
    assert "wrapping_gap" in outcome["rounds"][0]
