"""`seawall verify` as a job meets it: exit codes, JSON, one line where something is wrong, a vLLM that is ended."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from checkpoints import write_checkpoint
from commands import forked, refused
from completions import Completions, serving_completions
from families import tiny, tiny_tokenizer
from places import REPOSITORY, TESTS

FAMILY = "mixtral"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify") / "model", FAMILY)


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def is_running(process: int) -> bool:
    """Whether the process lives; one that has ended and waits for its parent, which may be slow, does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1] if Path("/proc").is_dir() else ""
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def ends_soon(process: int) -> bool:
    for _ in range(50):
        if not is_running(process):
            return True
        time.sleep(0.1)
    return False


def test_exit_codes_and_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for seed, code in ((0, 0), (1, 1)):
        with serving_completions(Completions(tiny(FAMILY, seed=seed), tiny_tokenizer())) as url:
            done = forked("verify", folder, "--endpoint", url, "--prompts", "3", "--json")
        assert done.returncode == code, done.stderr
        document = json.loads(done.stdout)
        assert document["passed"] is (code == 0)
        assert (document["probes"], document["experts"], document["total_experts"]) == (3, 24, 24)
        assert (document["first_difference"] is None) is (code == 0)
        assert document["weights"].startswith("sha256:")


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    refused("verify", folder, saying="verify needs one server; got neither --endpoint nor --vllm")
    refused("verify", folder, "--endpoint", "http://127.0.0.1:9/v1", "--vllm", saying="verify needs one server")
    refused("verify", folder, "--endpoint", "ftp://x", saying="--endpoint or --key-env is wrong")
    refused("verify", folder, "--vllm", "--dtype", "int8", saying="--dtype is wrong; got int8")
    missing = ("--vllm", "--vllm-program", tmp_path / "none", "--prompts", "1")
    refused("verify", folder, *missing, saying="there is no vLLM to start")
    broken = program(tmp_path / "vllm", "echo 'RuntimeError: no such device'; exit 3")
    ended = ("--vllm", "--vllm-program", broken, "--prompts", "1")
    refused("verify", tmp_path / "none", *ended, saying="does not exist")
    refused("verify", folder, *ended, saying="vLLM ended before it answered; got RuntimeError: no such device")


def test_vllm_is_started_and_ended_with_its_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    paths = f"{REPOSITORY / 'src'}:{TESTS}"
    words = f'exec env PYTHONPATH={paths} WORKER_FILE={tmp_path}/worker {sys.executable} {TESTS}/vllm_program.py "$@"'
    place = program(tmp_path / "vllm", words)
    done = forked("verify", folder, "--vllm", "--vllm-program", place, "--prompts", "2")
    assert done.returncode == 0, done.stderr
    assert "float32: the largest difference" in done.stdout
    assert ends_soon(int((tmp_path / "worker").read_text()))
