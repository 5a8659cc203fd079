"""Commands in two processes over gloo, and what the first one says to users."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from commands import ENVIRONMENT, forked_script
from places import TESTS


def launch(folder: Path, *commands: list[str | Path]) -> list[list[int]]:
    """The exit statuses of both processes of each command; `launch.py` says where their streams are."""
    lines = "".join(json.dumps([str(word) for word in words]) + "\n" for words in commands)
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}  # two processes cannot share one GPU
    output = forked_script(TESTS / "distributed" / "launch.py", "2", folder, text=lines, environment=environment)
    statuses: list[list[int]] = json.loads(output.splitlines()[-1])
    return statuses


def said(path: Path) -> list[str]:
    """The lines of a stream that are messages of seawall."""
    return [line for line in path.read_text().splitlines() if line.startswith("seawall: ")]


def vllm_program(folder: Path) -> Path:
    """Stands in for vLLM; refuses to start as a process of the launch."""
    paths, program = f"{TESTS.parent / 'src'}:{TESTS}", folder / "vllm"
    words = f'exec env PYTHONPATH={paths} WORKER_FILE={folder}/worker {sys.executable} {TESTS}/vllm_program.py "$@"'
    program.write_text(f'#!/bin/sh\ntest -z "$WORLD_SIZE$RANK$MASTER_PORT" || exit 9\n{words}\n')
    program.chmod(0o755)
    return program
