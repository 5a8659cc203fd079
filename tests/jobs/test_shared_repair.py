"""A run that repairs the shared experts: every document says what trained, and the plan counts what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from planted import FEW_PROMPTS
from seawall.artifacts.delta import Delta
from seawall.config import load_recipe
from seawall.jobs.diff import diff, difference_tables
from seawall.jobs.plan import plan_recipe
from seawall.jobs.run import Outcome, run_recipe
from seawall.models.moe.find import find_moe
from seawall.models.moe.module_copies import shared_experts
from seawall.runs.progress import Quiet
from seawall.shell.difference import RunDifference
from seawall.shell.model import open_checkpoint, open_model

SHARED = (*FEW_PROMPTS, "repair.parameters=shared", "repair.rounds=1", "repair.expert.epochs=1", "export.verify=false")


@pytest.fixture(scope="module")
def finished(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("shared") / "run"
    recipe = load_recipe(planted, [*SHARED, "repair.router.enabled=false"])
    return run_recipe(recipe, folder, text=planted.read_text(), reporter=Quiet())


def test_the_shared_experts_alone_change_and_the_delta_takes_them_off(finished: Outcome, planted: Path) -> None:
    opened = open_model(open_checkpoint(load_recipe(planted).model))
    delta, state = Delta.load(finished.run.path / "delta"), opened.model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    delta.apply(state)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    modules = shared_experts(find_moe(opened.model))
    assert changed == {f"{path}.{name}" for path, module in modules.items() for name, _ in module.named_parameters()}
    delta.revert(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_the_documents_name_what_trained(finished: Outcome) -> None:
    assert finished.summary is not None
    assert finished.summary["repair"]["parameters"] == "shared"
    page, card = ((finished.run.path / name).read_text() for name in ("report.html", "model/README.md"))
    assert "The repair trained the shared experts, whatever is selected here." in page
    assert "this repair, which trained the shared experts, is no test of it" in page
    assert "Open to change were the shared experts beside the routed ones (and a gate of theirs, if any);" in card
    difference = diff(finished.run.path, finished.run.path)
    assert isinstance(difference, RunDifference)
    assert difference.repairs[1].parameters == "shared"
    assert "the shared experts" in list(next(difference_tables(difference)).columns[1].cells)


def test_the_bill_of_materials_names_what_trained(finished: Outcome, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (seawall[bom])")
    from seawall.formats.bom import write_bom

    document = json.loads(write_bom(finished.run.path, tmp_path / "bom.json").read_text())
    (delta,) = (part for part in document["components"] if part["bom-ref"] == "delta")
    assert {"name": "seawall:trained_parameters", "value": "shared"} in delta["properties"]


def test_the_planned_delta_is_the_written_one(finished: Outcome, planted: Path) -> None:
    recipe = load_recipe(planted, [*SHARED, "repair.router.enabled=false"])
    stages = {stage.name: stage for stage in plan_recipe(recipe, verb="run").plan.stages}
    written = (finished.run.path / "delta" / "delta.safetensors").stat().st_size
    assert stages["repair"].disk["delta"] == stages["export"].disk["delta"]
    assert 0 < written - stages["export"].disk["delta"] < 8192, "names and shapes beside the bits"
