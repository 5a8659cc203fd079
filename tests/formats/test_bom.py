"""The bill of materials is valid for the library's strict validator, and holds what the run folder holds."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (seawall[bom])")

from commands import refused
from seawall.artifacts.evaluation import EvalResult
from seawall.formats.bom import validation_problem, write_bom


@pytest.fixture(scope="module")
def document(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bom")
    text, again = (write_bom(planted_run, folder / name).read_text() for name in ("bom.json", "again.json"))
    assert text == again
    assert validation_problem(text) is None
    document: dict[str, Any] = json.loads(text)
    return document


def facts(component: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["value"] for row in component["properties"]}


def test_model_base_delta_and_data_are_components(document: dict[str, Any], planted_run: Path) -> None:
    model = document["metadata"]["component"]
    parts = {row["bom-ref"]: row for row in document["components"]}
    before, after = (EvalResult.load(planted_run / f"eval-{side}").model_fingerprint for side in ("before", "after"))
    assert (model["type"], facts(model)["seawall:weights"]) == ("machine-learning-model", after)
    assert facts(parts["base-model"])["seawall:weights"] == before
    assert model["pedigree"]["ancestors"][0]["name"] == parts["base-model"]["name"] == "model"
    for row in (*model["components"], *parts["delta"]["components"]):
        path = planted_run / row["bom-ref"].removeprefix("file:")
        assert row["hashes"] == [{"alg": "SHA-256", "content": sha256(path.read_bytes()).hexdigest()}]
    assert {row["name"] for row in parts["delta"]["components"]} == {"delta.json", "delta.safetensors"}
    samples = sha256((planted_run / "eval-after/samples.jsonl").read_bytes()).hexdigest()
    assert parts["data:judged-replies-after"]["hashes"][0]["content"] == samples
    assert str(planted_run.parent) not in json.dumps(document)


def test_both_model_cards_hold_the_rates(document: dict[str, Any], planted_run: Path) -> None:
    base = next(row for row in document["components"] if row["bom-ref"] == "base-model")
    for side, component in (("before", base), ("after", document["metadata"]["component"])):
        rates = EvalResult.load(planted_run / f"eval-{side}").groups
        metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        assert [float(row["value"]) for row in metrics] == [rate.rate for rate in rates.values()]
        assert metrics[0]["type"] == "refusal_rate"
        references = {row["ref"] for row in component["modelCard"]["modelParameters"]["datasets"]}
        assert references <= {row["bom-ref"] for row in document["components"]}


def test_the_validator_refuses_another_document(document: dict[str, Any]) -> None:
    components = [{**row, "type": "something"} for row in document["components"]]
    assert validation_problem(json.dumps({**document, "components": components})) is not None


def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    (tmp_path / "bom.json").touch()
    refused("export", "bom", planted_run, "-o", tmp_path / "bom.json", saying="got a file of that name")
    refused("export", "bom", planted_run, "-o", tmp_path / "none/bom.json", saying="got no such folder")
    refused("export", "bom", tmp_path, "-o", tmp_path / "new.json", saying="is no run folder")
    run = shutil.copytree(planted_run, tmp_path / "run")
    (run / "delta/delta.json").write_text("{}")
    refused("export", "bom", run, "-o", tmp_path / "new.json", saying="was changed or damaged")
