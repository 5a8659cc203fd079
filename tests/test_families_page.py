"""docs/families.md is what scripts/family_list.py writes, shown on a sample."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest
import transformers

from places import REPOSITORY

PAGE = REPOSITORY / "docs" / "families.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("family_list", REPOSITORY / "scripts" / "family_list.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["mixtral", "glm_moe_dsa", "deepseek_v3", "gemma4_text"])
def test_the_row_of_a_family_is_what_the_script_finds(script: ModuleType, family: str) -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{family}` ")]
    if transformers.__version__ not in PAGE.read_text("utf-8"):
        pytest.skip("the page was written with another version of transformers")
    assert rows == [script.check(family).row()]


def test_the_page_counts_its_own_rows() -> None:
    text = PAGE.read_text("utf-8")
    results = re.findall(r"^\| `[a-z0-9_]+` \| ([^|]+) \|", text, flags=re.MULTILINE)
    counts = [results.count(result) for result in ("ok", "**refused**", "not built")]
    assert sum(counts) == len(results)
    flat = " ".join(text.split())
    assert f"{counts[0]} pass, {counts[1]} are refused. {counts[2]} are not built" in flat
