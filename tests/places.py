"""Where the repository and what lies beside it are."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
SHARED = REPOSITORY.parent / "shared"
"""Prompts, questions and outputs of the reference formulas; tests that need them are skipped where it is absent."""
