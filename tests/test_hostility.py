"""A slice of `benchmarks/hostile.py`: mutated input is refused, or gives the numbers that it should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hostility import FAILURES, Ground, cases

SLICE = {"recipe": 10, "prompts": 6, "artifact": 10, "model": 3, "adapter": 3, "body": 10}


@pytest.fixture(scope="module")
def ground(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    pytest.importorskip("peft")
    return Ground(tmp_path_factory.mktemp("ground")).build(planted_run)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("kind", SLICE)
def test_nothing_fails_hangs_or_changes_without_a_word(kind: str, ground: Ground, tmp_path: Path) -> None:
    for seed in range(SLICE[kind]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome = cases(ground)[kind](folder, random.Random(f"{kind}/{seed}"))
        assert outcome.result not in FAILURES, outcome
