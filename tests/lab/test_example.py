"""The method by hand, `examples/repair_by_hand.py`, runs from end to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from places import REPOSITORY

SCRIPT = REPOSITORY / "examples" / "repair_by_hand.py"
SMALLEST = ["--goals", "3", "--rounds", "1", "--steps", "1", "--test-goals", "1"]
LINES = (
    "attack success in the role-play",
    "plain goals refused",
    "benign in the role-play refused",
    "plain benign refused",
)


@pytest.mark.lab
@pytest.mark.usefixtures("lab_models")
def test_repair_by_hand_prints_its_table() -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALLEST], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for line in LINES:
        assert re.search(rf"^{re.escape(line)} +[01] +[01]$", done.stdout, re.MULTILINE), done.stdout
