"""`landscape` and `gene extract` in two processes over gloo: changed weights and adapters exist in both."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import launch, said
from transformers import PreTrainedModel

from planted_refusal import EXPERT, refusing_by_expert, refusing_densely
from refusing_recipe import write_refusing
from seawall.artifacts.gene import Gene
from seawall.config import load_recipe
from seawall.jobs.gene import extract_gene
from seawall.jobs.landscape import landscape_recipe
from seawall.runs.files import read_metrics
from seawall.runs.progress import Quiet
from siblings import QUICK, save_sibling

pytest.importorskip("peft")
AUTO = ["--set", "model.device=auto"]
COMPUTE = "seawall.models.replicas:_compute"
UPDATE = "seawall.methods.gene.launched:_update"
SHORT = {**QUICK["extract"], "epochs": 2, "harmful": 9, "benign": 8, "held_out": 5, "judged": 5}


def _write(folder: Path, model: PreTrainedModel, changed: str, factor: float, **sections: Any) -> Path:
    """A model, a sibling in which one tensor is so many times as large, and a recipe with both."""
    folder.mkdir()
    path = write_refusing(folder, model)
    with torch.no_grad():
        model.get_parameter(changed).mul_(factor)
    save_sibling(folder / "other", model)
    content = yaml.safe_load(path.read_text())
    content["eval"]["batch_size"] = 4
    for name, section in sections.items():
        other = {"id": str(folder / "other"), "dtype": "float32", "device": "cpu"}
        content[name] = {key: other if value == "OTHER" else value for key, value in section.items()}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a mixture of experts whose refusal one expert writes."""
    return _write(
        tmp_path_factory.mktemp("models") / "mixture",
        refusing_by_expert(clear=True),
        f"model.layers.{EXPERT[0]}.mlp.experts.down_proj",
        0.1,
        landscape={
            "base": "OTHER",
            "random_directions": 1,
            "amounts": [-1.0, 0.0, 0.5],
            "plane_amounts": [],
            "test_prompts": 10,
            "harmless_prompts": 0,
        },
        gene={
            **QUICK,
            "targets": ["experts.down_proj"],
            "degraded": "OTHER",
            "extract": {**SHORT, "expert_shares": [0.25]},
        },
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a dense model in 16 bits, whose degraded sibling the extraction makes."""
    return _write(
        tmp_path_factory.mktemp("models") / "dense",
        refusing_densely().to(torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight",
        1.3,
        landscape={
            "base": "OTHER",
            "random_directions": 1,
            "amounts": [0.0, 30.0],
            "plane_amounts": [],
            "test_prompts": 9,
            "harmless_prompts": 3,
        },
        gene={
            **QUICK,
            "degraded": None,
            "degrade": {"lr": 0.003, "epochs": 2, "harmful": 10, "benign": 5, "batch_size": 6},
            "extract": SHORT,
        },
    )


@pytest.fixture(scope="module")
def launched(mixture: Path, dense: Path) -> Path:
    """What two processes made of both; some launches are killed first."""
    folder = mixture.parent.parent / "launched"
    folder.mkdir()
    curve: list[str | Path] = ["landscape", mixture, "-o", folder / "curve", *AUTO]
    gene: list[str | Path] = ["gene", "extract", dense, "-o", folder / "gene", *AUTO]
    statuses = launch(
        folder,
        [f"kill:4:{COMPUTE}", *curve],
        curve,
        ["landscape", folder / "curve", "--json"],
        ["landscape", dense, "-o", folder / "dense-curve", "--set", "model.dtype=auto"],
        [f"kill:7:{UPDATE}", *gene],
        gene,
        ["gene", "extract", mixture, "-o", folder / "expert-gene", "--json", *AUTO],
        ["gene", "select", folder / "gene", "-o", folder / "selected"],
    )
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


def statuses(launched: Path) -> list[list[int]]:
    return list(json.loads((launched / "statuses.json").read_text()))


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(launched: Path) -> None:
    killed, resumed, again, dense, gene_killed, gene, experts, _ = statuses(launched)
    assert (killed, gene_killed) == ([3, -9], [3, -9])
    assert (resumed, again, dense, gene, experts) == ([0, 0],) * 5
    for name in ("0-0.err", "4-0.err"):
        assert said(launched / name) == [
            "seawall: interrupted: another process of the launch has ended; run the same command to resume"
        ]
    for number in (1, 2, 3, 5, 6):
        assert (launched / f"{number}-1.out").read_text() == (launched / f"{number}-1.err").read_text() == ""


@pytest.mark.parametrize(("name", "changes"), [("curve", []), ("dense-curve", ["model.dtype=auto"])])
def test_a_landscape_is_that_of_one_process_to_the_byte(
    launched: Path, mixture: Path, dense: Path, tmp_path: Path, name: str, changes: list[str]
) -> None:
    recipe = mixture if name == "curve" else dense
    result = landscape_recipe(load_recipe(recipe, changes), tmp_path / "run", text="", reporter=Quiet())
    files = [path for path in sorted((tmp_path / "run/landscape").rglob("*.json*")) if path.name != "stage.json"]
    assert len(files) == len(result.points) + 1
    for path in files:
        ours = launched / name / path.relative_to(tmp_path / "run")
        assert ours.read_bytes() == path.read_bytes(), path.name
    # The moves change what the model says, so a copy that had not moved would have said something else.
    assert len({(tmp_path / f"run/landscape/samples/{point.name}.jsonl").read_text() for point in result.points}) > 1


def test_a_run_is_measured_by_both_too(launched: Path) -> None:
    document = json.loads((launched / "2-0.out").read_text())
    assert document["landscape"] == json.loads((launched / "curve/landscape/landscape.json").read_text())


def _numbers(record: Any) -> list[float]:
    return [value for value in astuple(record) if not isinstance(value, str)]


@pytest.mark.parametrize("name", ["gene", "expert-gene"])
def test_a_gene_is_that_of_one_process_but_for_rounding(
    launched: Path, mixture: Path, dense: Path, tmp_path: Path, name: str
) -> None:
    recipe = dense if name == "gene" else mixture
    extract_gene(load_recipe(recipe), tmp_path / "run", text="", reporter=Quiet())
    ours, alone = launched / name, tmp_path / "run"
    replies = "gene-replies/replies.jsonl"
    assert (ours / replies).read_bytes() == (alone / replies).read_bytes()
    for rows in ("metrics.jsonl", *(["degrade.jsonl"] if name == "gene" else [])):
        pairs = list(zip(read_metrics(ours / "gene" / rows), read_metrics(alone / "gene" / rows), strict=True))
        assert len(pairs) > 3
        for row, expected in pairs:
            assert row == pytest.approx(expected, abs=1e-5, rel=1e-4)
    first, second = Gene.load(ours / "gene"), Gene.load(alone / "gene")
    assert first.points == second.points
    assert (first.aligned, first.refusals) == (second.aligned, second.refusals)
    for ours_and_theirs in (
        (first.curve, second.curve),
        (first.recovery, second.recovery),
        (first.layers, second.layers),
    ):
        measured, alone_measured = ([_numbers(record) for record in records] for records in ours_and_theirs)
        assert measured == [pytest.approx(numbers, abs=1e-5, rel=1e-4) for numbers in alone_measured]
    for point in first.points:
        torch.testing.assert_close(first.update(point), second.update(point), rtol=1e-3, atol=1e-5)


def test_experts_are_scored_by_both(launched: Path) -> None:
    document = json.loads((launched / "6-0.out").read_text())
    gene = Gene.load(launched / "expert-gene/gene")
    assert document["gene"] == str(launched / "expert-gene/gene")
    assert [(record.share, record.by) for record in gene.recovery] == [(0.25, "score"), (0.25, "random")]
    planted = gene.experts[EXPERT[0]]
    assert max(range(8), key=planted.scores.__getitem__) == EXPERT[1]


def test_what_cannot_share_says_so_before_it_loads(launched: Path) -> None:
    assert statuses(launched)[-1] == [2, 2]
    (line,) = said(launched / "7-0.err")
    assert "seawall gene select runs in one process; got 2 processes" in line
    assert not (launched / "selected").exists()
