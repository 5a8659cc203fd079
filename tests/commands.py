"""Running the command line in a process of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from seawall.cli import main; main()"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def seawall(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=cwd)


def refused(*arguments: str | Path, saying: str) -> None:
    """Exit code 2 and one line that holds `saying`; no traceback."""
    done = seawall(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert saying in lines[-1]
    assert len([line for line in lines if line.startswith("seawall: ")]) == 1
