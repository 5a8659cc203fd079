"""The methods by hand, `examples/*_by_hand.py`, run from end to end on the embedded model."""

from __future__ import annotations

import re

import pytest

from commands import forked_script
from places import REPOSITORY
from seawall.errors import ArtifactError
from seawall.lab.build import lab_model_folder, original_model_folder

EXAMPLES = REPOSITORY / "examples"
SMALLEST = {
    "steer": ["--prompts", "4", "--validation", "2", "--test", "2"],
    "asft": ["--rows", "10", "--updates", "1", "--test", "2"],
    "gene": ["--requests", "4", "--updates", "1", "--shots", "4", "--test", "2"],
}
ROWS = {
    "steer": [
        r"model as it is +[0-2] +[0-2]",
        r"direction taken away +[0-2] +[0-2]",
        r"control: random .* +[0-2] +[0-2]",
    ],
    "asft": [rf"{method} +[\d.]+ +[\d.]+ +[0-2] +[0-2]" for method in ("before", "sft", "asft", "l2")],
    "gene": [rf"{name} +[0-2] +[0-2] +[\d.]+" for name in ("aligned", "fine-tuned", "best 6, coefficients tuned")],
}
LONGEST = 200


@pytest.mark.lab
@pytest.mark.parametrize("name", SMALLEST)
def test_it_prints_its_table(name: str) -> None:
    try:
        lab_model_folder()
        original_model_folder()
    except ArtifactError as error:
        pytest.skip(f"the embedded model is not in the cache and cannot be fetched: {error}")
    output = forked_script(EXAMPLES / f"{name}_by_hand.py", *SMALLEST[name], kind="fresh")
    for row in ROWS[name]:
        assert re.search(rf"^{row}$", output, re.MULTILINE), output


@pytest.mark.parametrize("name", SMALLEST)
def test_it_is_short_and_needs_the_public_names_alone(name: str) -> None:
    text = (EXAMPLES / f"{name}_by_hand.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert not re.search(r"^(from seawall|import seawall\.)", text, re.MULTILINE)
