"""`benchmarks/safegene.py`: no row of other inputs in a table, and interrupted tables are read."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoints import edit_json
from families import tiny
from places import REPOSITORY
from seawall.artifacts.adapter import save_adapter
from seawall.config.load import changed_defaults
from siblings import random_gene, save_sibling, write_shots

PATH = REPOSITORY / "benchmarks/safegene.py"


@pytest.fixture(scope="module")
def safegene() -> ModuleType:
    spec = importlib.util.spec_from_file_location("safegene", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["safegene"] = module
    spec.loader.exec_module(module)
    return module


def test_other_inputs_are_refused_and_earlier_rows_stay(safegene: ModuleType, tmp_path: Path) -> None:
    random_gene(tiny("llama"), rank=1, targets=("q_proj",)).save(tmp_path / "gene")
    refusals, task = write_shots(tmp_path)
    for folder in ("adapter", "anchor"):
        (tmp_path / folder).mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"lora_alpha": 1}')
    (tmp_path / "anchor/anchor.json").write_text("{}")
    (tmp_path / "kites.jsonl").write_text('{"prompt": "How do kites fly?"}\n')
    recipe = changed_defaults(["data.benign.kind=jsonl", f"data.benign.path={tmp_path / 'kites.jsonl'}"])
    fields: dict[str, Any] = {"model": str(tmp_path / "adapter"), "gene": tmp_path / "gene", "task": task}
    fields |= {"test": refusals, "output": tmp_path / "out", "aligned": "lab", "fraction": 0.3, "answer": "exact"}
    fields |= {"seed": 0, "anchor": None, "base": None, "drop": 0.5, "shots": [0, 8], "controls": [], "rows": []}

    def ask(**changes: Any) -> None:
        safegene._require_same(Namespace(**fields | changes), recipe)

    ask()
    ask(anchor=tmp_path / "anchor", shots=[16])
    assert json.loads((tmp_path / "out/inputs.json").read_text())["rows"] == [
        *("aligned", "fine-tuned", "safelora", "safemerge", "safegene-n16", "safety-sft-n16"),
        *("safegene-n0", "safegene-n8", "safety-sft-n8"),
    ]
    ask()
    with pytest.raises(SystemExit, match=r"a table of other inputs \(settings\)"):
        ask(seed=1)
    for path, content, said in (
        ("anchor/anchor.json", '{"energy": 1}', "anchor"),
        ("adapter/adapter_config.json", '{"lora_alpha": 2}', "task_adapter"),
        ("kites.jsonl", '{"prompt": "How do birds fly?"}\n', "prompts"),
    ):
        before = (tmp_path / path).read_text()
        (tmp_path / path).write_text(content)
        with pytest.raises(SystemExit, match=rf"other inputs \({said}\)"):
            ask(anchor=tmp_path / "anchor")
        (tmp_path / path).write_text(before)


def test_a_command_may_name_its_rows(safegene: ModuleType) -> None:
    asked = Namespace(shots=[0, 16], controls=[16], anchor=None, base="lab-original", model="m", drop=0.5, rows=[])
    assert len(safegene._wanted(asked)) == 11
    asked.rows = ["resta-n16", "safemerge"]
    assert [row.key for row in safegene._wanted(asked)] == ["aligned", "fine-tuned", "safemerge", "resta-n16"]
    asked.rows = ["resta-n8"]
    with pytest.raises(SystemExit, match="--rows resta-n8: choose from safelora safemerge safegene-n0"):
        safegene._wanted(asked)


def test_a_merge_of_the_task_that_was_interrupted_is_made_anew(safegene: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    task = save_sibling(tmp_path / "task", tiny("llama", vocab_size=262))
    gene = random_gene(tiny("llama", vocab_size=262), rank=1, targets=("q_proj",))
    save_adapter(tmp_path / "adapter", gene.points, gene.factors, gene.scaling)
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=str(task))
    partial = tmp_path / "out/task-model.partial"
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("{}")
    asked = Namespace(model=str(tmp_path / "adapter"), output=tmp_path / "out")
    merged = safegene._task_checkpoint(asked, changed_defaults(["model.device=cpu"]))
    assert merged == tmp_path / "out/task-model"
    assert (merged / "model.safetensors").is_file()
    assert not partial.exists()


def test_tables_that_were_interrupted_are_summed_up_and_each_row_says_of_how_many(safegene: ModuleType) -> None:
    def row(refused: float) -> dict[str, Any]:
        rates = {name: {"rate": refused} for name in ("plain_refusal", "over_refusal", "benign_compliance", "task")}
        return {**rates, "attacks": {}}

    whole = {"aligned": row(0.9), "fine-tuned": row(0.1), "safegene-n8": row(0.5)}
    begun = {name: whole[name] for name in ("aligned", "fine-tuned")}
    lines = safegene._summary([whole, begun, {"aligned": row(0.2)}]).splitlines()
    assert lines[0].startswith("mean of 2 tables")
    assert [line.split()[-1] for line in lines[1:]] == ["2", "2", "1"]
    assert lines[3].split()[:3] == ["safegene-n8", "50.0", "50.0"]
