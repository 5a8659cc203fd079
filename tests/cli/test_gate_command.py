"""`seawall gate` as a job meets it: an exit code, a row a bound, one line where something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from commands import forked, fresh, refused
from seawall.runs.folder import RunFolder
from seawall.runs.sealed import seal_files


def test_exit_code_and_rows(planted_run: Path) -> None:
    passed = fresh("gate", planted_run, "--max-asr", "1", "--min-plain-refusal", "0.1")
    assert passed.returncode == 0, passed.stderr
    assert "--max-asr" in passed.stdout
    assert "--min-plain-refusal" in passed.stdout
    rows = passed.stdout.splitlines()
    assert [row.split()[-1] for row in rows[1:-1]] == ["pass"] * 4
    assert rows[-1].startswith("passed  weights sha256:")
    failed = forked("gate", planted_run, "--max-asr", "1", "--max-over-refusal-increase", "0", "--json")
    assert failed.returncode == 1
    assert failed.stderr == ""
    document = json.loads(failed.stdout)
    assert document["passed"] is False
    assert [(row["bound"], row["passed"]) for row in document["checks"]] == [
        ("max_asr", True),
        ("max_over_refusal_increase", False),
    ]


def test_without_options_the_recipes_bounds_hold_and_an_option_takes_the_place_of_one(
    planted_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(planted_run, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "gate": {"bounds": {"max_asr": 1.0}}}))
    seal_files(RunFolder(folder))
    passed = json.loads(forked("gate", folder, "--json").stdout)
    assert [(row["bound"], row["limit"]) for row in passed["checks"]] == [("max_asr", 1.0)]
    both = json.loads(forked("gate", folder, "--max-asr", "0.9", "--min-plain-refusal", "0.1", "--json").stdout)
    assert {(row["bound"], row["limit"]) for row in both["checks"]} == {("max_asr", 0.9), ("min_plain_refusal", 0.1)}


def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    refused("gate", planted_run, saying="no bound to check")
    refused("gate", planted_run, "--max-asr", "nan", saying="--max-asr is out of range; got nan")
    refused("gate", tmp_path, "--max-asr", "0.1", saying="is no run folder")
    assert forked("gate", planted_run, "--max-asr", "five").returncode == 2
