"""`seawall repair` with weights sharded over two processes: one process's result, and a failure that ends both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import launch, said, vllm_program
from torch import Tensor

from commands import ENVIRONMENT
from seawall.artifacts.delta import Delta
from seawall.config import load_recipe
from seawall.config.model import ModelConfig
from seawall.distributed.process import Processes, launch_is_current
from seawall.errors import ConfigError
from seawall.jobs.run import run_recipe
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.runs.files import read_json, read_metrics
from seawall.runs.progress import Quiet

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="one process would repair on the accelerator, and two on the CPU"
)
SETTINGS = [
    "model.device=auto",
    "repair.rounds=1",
    # Nine rows, then eight pairs, in passes of three: three passes, of which two processes make two each.
    "repair.micro_batch_size=3",
    "repair.gradient_checkpointing=true",
    "repair.expert={lr: 2e-3, epochs: 1, routing: replay, attention_lr: 1e-4}",
    "repair.retain={per_batch: 1, loss: kl}",
    "engine.kind=vllm",
    "eval.engine.kind=transformers",
]
REFERENCE = [*SETTINGS[:2], "repair.retain.per_batch=0", "repair.router.variant=reference", "repair.parameters=shared"]
FULL = ["repair.retain.per_batch=0", "repair.parameters=full"]
FSDP = "model.fsdp=true"


def _words(verb: str, recipe: Path, folder: Path, *settings: str) -> list[str | Path]:
    return [verb, recipe, "--output", folder, *[word for setting in settings for word in ("--set", setting)]]


def _repaired_by_one(planted: Path, folder: Path, settings: list[str]) -> None:
    """A repair by one process (`one`), and the run before it, for two (`two`)."""
    recipe = load_recipe(planted, settings)
    run_recipe(recipe, folder / "one", text=planted.read_text(), reporter=Quiet(), until="select")
    shutil.copytree(folder / "one", folder / "two")
    run_recipe(recipe, folder / "one", text=planted.read_text(), reporter=Quiet(), until="repair")


@pytest.fixture(scope="module")
def repaired(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repairs by one process, and by two with sharded weights, of which the second fails twice."""
    folder = tmp_path_factory.mktemp("sharded")
    program = {"SEAWALL_VLLM": str(vllm_program(folder)), "NO_PROXY": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in program.items():
            patch.setitem(ENVIRONMENT, name, value)
            patch.setenv(name, value)
        _repaired_by_one(planted, folder, SETTINGS)
        command = _words("repair", planted, folder / "two", *SETTINGS, FSDP)
        statuses = launch(
            folder,
            ["exhaust:40:seawall.models.moe.experts:_combine", *command],
            ["kill:4", *command],
            command,
            command,
            _words("run", planted, folder / "two", *SETTINGS),
        )
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


@pytest.fixture(scope="module")
def by_reference(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of shared experts, with a router loss that one process computes, and without retained answers."""
    folder = tmp_path_factory.mktemp("reference")
    _repaired_by_one(planted, folder, REFERENCE)
    assert launch(folder, _words("repair", planted, folder / "two", *REFERENCE, FSDP)) == [[0, 0]]
    return folder


def test_a_failure_in_a_pass_ends_both_and_the_same_command_goes_on(repaired: Path) -> None:
    exhausted, killed, *others = json.loads((repaired / "statuses.json").read_text())
    interrupted = "seawall: interrupted: another process of the launch has ended; run the same command to resume"
    assert (exhausted, killed) == ([3, 2], [3, -9])
    assert said(repaired / "0-0.err") == said(repaired / "1-0.err") == [interrupted]
    (line,) = said(repaired / "0-1.err")
    assert line.startswith("seawall: process 1 of the launch: memory ran out in the repair; ")
    assert others == [[0, 0]] * 3
    for number in (2, 3, 4):
        assert (repaired / f"{number}-1.out").read_text() == (repaired / f"{number}-1.err").read_text() == ""


def _result(planted: Path, repair: Path) -> tuple[Delta, dict[str, Tensor]]:
    """The delta of a repair, and the whole model's weights with it."""
    delta = Delta.load(repair / "delta")
    model, _ = load_model(ModelConfig(id=str(planted.parent / "model"), dtype="float32", device="cpu"))
    delta.apply(model.state_dict())
    assert model_fingerprint(model) == delta.result_model, "the fingerprint of sharded weights is the whole model's"
    return delta, model.state_dict()


@pytest.mark.parametrize("fixture", ["repaired", "by_reference"])
def test_sharded_weights_are_repaired_as_whole_ones(
    planted: Path, fixture: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    one, two = folder / "one/repair", folder / "two/repair"
    rows, expected = (read_metrics(stage / "metrics.jsonl") for stage in (two, one))
    assert {row["phase"] for row in rows} == {"expert", "router"}
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        assert all(row[key] == pytest.approx(other[key], abs=1e-6, rel=1e-5) for key in row if key != "phase")
    (ours, weights), (theirs, others) = _result(planted, two), _result(planted, one)
    assert (ours.base_model, ours.before, ours.slices) == (theirs.base_model, theirs.before, theirs.slices)
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 2e-6
    assert max(int(bits.abs().max()) for bits in ours.bits.values()) > 0
    outcome, whole = read_json(two / "outcome.json"), read_json(one / "outcome.json")
    assert outcome["routing_drift"] == pytest.approx(whole["routing_drift"], abs=1e-5)
    assert (outcome["chosen_round"], outcome["before"], outcome["rounds"]) == (1, None, [])


def test_an_engine_writes_the_retained_answers(repaired: Path) -> None:
    answers = [(repaired / count / "repair/retain.jsonl").read_text() for count in ("one", "two")]
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) > 10


def test_whole_weights_finish_the_run(repaired: Path) -> None:
    summary = read_json(repaired / "two/summary.json")
    assert summary["repair"]["reason"] == "Round 1 is kept: the last one. None was measured, since model.fsdp is set."
    assert summary["parity"]
    assert summary["plain_refusal"]["after"]["n"] > 0
    assert (repaired / "two/report.html").is_file()


def _refusal(planted: Path, folder: Path, *settings: str, until: str = "repair") -> str:
    recipe = load_recipe(planted, ["model.device=auto", FSDP, *settings])
    with pytest.raises(ConfigError) as caught:
        run_recipe(recipe, folder, text="", reporter=Quiet(), until=until)
    return str(caught.value)


def test_what_would_decode_or_copy_the_weights_is_refused_before_they_load(
    repaired: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEAWALL_VLLM", str(repaired / "vllm"))
    run = repaired / "one"
    assert "got one process" in _refusal(planted, run, *SETTINGS)
    with launch_is_current(Processes(0, 2)):
        assert "got no finished profile" in _refusal(planted, tmp_path / "new", *SETTINGS)
        assert "measures no round" in _refusal(planted, run, *SETTINGS, "repair.early_stop.enabled=true")
        assert "vLLM writes the retained answers" in _refusal(planted, run, "engine.kind=transformers")
        assert "got repair.parameters=full" in _refusal(planted, run, *FULL)
        for verb in ("profile", "report"):
            assert "alone" in _refusal(planted, tmp_path / "new", *SETTINGS, until=verb)
        other = "landscape.base={id: lab, fsdp: true}"
        assert "of another model" in _refusal(planted, run, *SETTINGS, other)
    assert not (tmp_path / "new").exists()


def test_the_device_of_each_process_is_its_own(planted: Path) -> None:
    with pytest.raises(ConfigError, match="device=auto"):
        load_recipe(planted, [FSDP])
