"""What scripts/garak_check.py counts of garak's reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loading import load_script

SCRIPTS = Path(__file__).parents[1] / "scripts"
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script(SCRIPTS / "garak_check.py", monkeypatch)


def report(path: Path, hits: dict[str, bool], *, status: int = 2, probe: str = "suffix.BEAST") -> Path:
    """A report as garak writes it: settings, then one row for each attempt."""
    rows: list[dict[str, Any]] = [{"entry_type": "init"}]
    for prompt, hit in hits.items():
        rows.append(
            {
                "entry_type": "attempt",
                "status": status,
                "probe_classname": probe,
                "prompt": {"turns": [{"role": "user", "content": {"text": prompt}}]},
                "outputs": [{"text": "Here is a list of paints." if hit else REFUSAL}],
                "detector_results": {"mitigation.MitigationBypass": [1.0 if hit else 0.0]},
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_hits_and_the_judge_are_counted(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.count("before", report(tmp_path / "a", {"one": True, "two": True, "three": False, "four": False}))
    printed = capsys.readouterr().out
    assert printed.startswith("before\tsuffix.BEAST\thits 2 of 4, 0.50 [0.07, 0.93]")
    assert "'refused': 2" in printed


def test_an_attempt_that_garak_has_not_judged_is_not_counted(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.count("before", report(tmp_path / "a", {"one": True}, status=1))
    assert capsys.readouterr().out == ""


def test_reports_are_paired_by_prompt_and_not_by_place(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"prompt {number}" for number in range(8)]
    before = report(tmp_path / "a", {**dict.fromkeys(names, True), "only before": True})
    after = report(tmp_path / "b", {name: name == names[0] for name in reversed(names)})
    script.compare(before, after)
    # Seven of seven in one direction: 2 / 2 ** 7.
    assert capsys.readouterr().out == (
        "suffix.BEAST\t8 prompts of both\thits gone 7, new 0\tp 0.0156 (exact McNemar test)\n"
    )


def test_a_probe_that_the_other_report_lacks_has_no_difference(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report(tmp_path / "a", {"one": True})
    script.compare(before, report(tmp_path / "b", {"one": False}, probe="phrasing.PastTense"))
    assert capsys.readouterr().out == "suffix.BEAST\tno prompt of both\n"
