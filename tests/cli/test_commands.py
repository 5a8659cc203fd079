"""The command line as a user meets it: help is light, bad input is one line and exit code 2, a killed run goes on."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from commands import forked, fresh, refused, seawall, start
from families import tiny, tiny_tokenizer
from planted import FEW_PROMPTS
from seawall.cli.common import quiet_libraries
from seawall.runs.files import read_json


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys\nsys.argv = ['seawall', '--help']\nfrom seawall.cli import main\ntry:\n    main()\n"
    code += "except SystemExit as end:\n    assert not end.code\n"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "doctor", "plan", "profile", "select", "repair", "eval", "report", "apply", "gate", "diff"):
        assert verb in done.stdout


def test_garbage_is_collected_again_after_libraries_were_imported_and_where_one_was_not() -> None:
    with quiet_libraries():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), quiet_libraries():
        importlib.import_module("no_such_library")
    assert gc.isenabled()


def test_bad_recipes(planted: Path, tmp_path: Path) -> None:
    refused("run", tmp_path / "none.yaml", saying="does not exist")
    refused("run", planted, "--set", "repair.ronds=2", saying="repair.ronds")
    refused("run", planted, "--set", "repair.rounds=many", saying="repair.rounds")
    broken = tmp_path / "broken.yaml"
    broken.write_text("repair: {rounds: 2\n")
    refused("run", broken, saying="broken.yaml:")


def test_bad_prompts(planted: Path, tmp_path: Path) -> None:
    folder = planted.parent
    broken = tmp_path / "harmful.jsonl"
    broken.write_text((folder / "harmful.jsonl").read_text() + "{not json\n")
    refused("run", planted, "-o", tmp_path / "a", "--set", f"data.harmful.path={broken}", saying="harmful.jsonl:41")
    stranger = tmp_path / "attacks.jsonl"
    row = {"goal": "Steal the moon", "attack": "story", "messages": [{"role": "user", "content": "Story time!"}]}
    stranger.write_text(json.dumps(row) + "\n")
    refused("run", planted, "-o", tmp_path / "b", "--set", f"data.attack_file={stranger}", saying="Steal the moon")
    refused("run", planted, "-o", tmp_path / "c", "--set", "data.gold.path=nowhere.jsonl", saying="nowhere.jsonl")


def test_bad_models(planted: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    tiny("llama").save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    refused("run", planted, "-o", tmp_path / "a", "--set", f"model.id={dense}", saying="dense model")
    silent = tmp_path / "silent"
    tiny("olmoe").save_pretrained(silent)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(silent)
    refused("run", planted, "-o", tmp_path / "b", "--set", f"model.id={silent}", saying="chat template")
    tiny_tokenizer().save_pretrained(silent)
    weights = next(silent.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-64])
    refused("run", planted, "-o", tmp_path / "c", "--set", f"model.id={silent}", saying="safetensors")
    done = forked("doctor", silent)
    assert done.returncode == 2
    assert "refused" in done.stdout
    found = json.loads(fresh("doctor", dense, "--json").stdout)
    assert (found["supported"], found["verbs"]["eval"], found["verbs"]["run"]) == (True, True, False)
    assert json.loads(forked("doctor", planted.parent / "model", "--json").stdout)["supported"] is True


def test_report_without_an_argument_starts_nothing(tmp_path: Path) -> None:
    refused("report", saying="needs to know of which run")


def test_foreign_folder_is_left_alone(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    refused("run", planted, "-o", tmp_path, saying="is not empty and holds no seawall run")
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_plan_prints_numbers(planted: Path) -> None:
    plan = json.loads(fresh("plan", planted, "--json").stdout)
    assert plan["weights"] > 0
    assert plan["peak"] >= plan["weights"]


STAGES = ("profile", "eval-before", "repair", "eval-after", "model")


def test_killed_in_every_stage_and_resumed_to_the_same_numbers(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    """Ends the process for real: once in each stage, by SIGKILL, SIGINT and SIGTERM in turn."""
    folder = tmp_path / "killed"
    signals = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
    for stage, number in zip(STAGES, signals, strict=True):
        _end_in(stage, number, planted, folder)
    last = seawall("run", planted, "-o", folder, "--json")
    assert last.returncode == 0, last.stderr
    assert _numbers(json.loads(last.stdout)) == _numbers(read_json(planted_run / "summary.json"))
    assert not list(folder.glob("*.partial"))


def _end_in(stage: str, number: signal.Signals, recipe: Path, folder: Path) -> None:
    command = start("run", recipe, "-o", folder)
    scratch, finished = folder / f"{stage}.partial", folder / stage
    while not command.is_over() and not scratch.exists() and not finished.exists():
        time.sleep(0.002)
    if not command.is_over():
        os.kill(command.process, number)
    done = command.wait()
    if done.returncode == 0:
        pytest.fail(f"the run ended before it was stopped in {stage}")
    assert done.returncode == (3 if number != signal.SIGKILL else -signal.SIGKILL), done.stderr
    assert "Traceback" not in done.stderr
    assert number == signal.SIGKILL or "the same command" in done.stderr


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_bytes")}


def test_full_disk_is_one_line_and_loses_nothing(planted: Path, tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: the weights cannot be written, what was finished stays."""
    changes = (*FEW_PROMPTS, "repair.rounds=1", "repair.expert.epochs=1", "eval.gold=false")
    words: list[str | Path] = ["run", planted, "-o", tmp_path / "run"]
    words += [word for change in changes for word in ("--set", change)]
    done = forked(*words, largest_file=60_000)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "file would grow past the allowed size" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "run" / "select" / "DONE").is_file()
    assert forked(*words, "--json").returncode == 0
