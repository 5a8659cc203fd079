"""The method by hand, `examples/repair_by_hand.py`, runs from end to end."""

from __future__ import annotations

import re

import pytest

from commands import forked_script
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
    output = forked_script(SCRIPT, *SMALLEST, kind="fresh")
    for line in LINES:
        assert re.search(rf"^{re.escape(line)} +[01] +[01]$", output, re.MULTILINE), output
