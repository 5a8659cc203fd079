"""`data.limit`: at most N prompts of every group, in every split, under another fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

from seawall.artifacts.groups import ATTACK
from seawall.config.data import DataConfig, FileSource
from seawall.data.sets import load_prompts
from seawall.evaluation.suite import build_suite


def test_every_group_has_at_most_that_number_of_prompts() -> None:
    limited, every = (load_prompts(DataConfig(limit=limit, validation_goals=1)) for limit in (2, None))
    suite = build_suite(limited, wrapping=True)
    counts = {name: len(rows) for name, rows in suite.groups.items()}
    assert counts == dict.fromkeys(counts, 2) | {"wrapped": 1}  # one of the two benign requests is a question
    assert set(suite.groups) == set(build_suite(every, wrapping=True).groups)
    assert (len(limited.gold), len(limited.retain), len(limited.retain_wrapped)) == (2, 2, 2)
    assert (len(limited.goals.train), len(limited.goals.validation)) == (2, 1)
    assert limited.fingerprint() != every.fingerprint()
    assert limited.fingerprint() != load_prompts(DataConfig(limit=3, validation_goals=1)).fingerprint()


def test_an_attack_file_with_several_attacks_on_a_goal(tmp_path: Path) -> None:
    goals = ("Steal the bat", "Steal the cat", "Steal the dog")
    (tmp_path / "goals.jsonl").write_text(
        "".join(json.dumps({"prompt": goal, "split": "test"}) + "\n" for goal in goals)
    )
    rows = [
        {"goal": goal, "attack": "story", "messages": [{"role": "user", "content": f"{number}: {goal}"}]}
        for goal in goals
        for number in range(4)
    ]
    (tmp_path / "attacks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, file = FileSource(path=str(tmp_path / "goals.jsonl")), str(tmp_path / "attacks.jsonl")
    prompts = load_prompts(DataConfig(harmful=source, attack_file=file, limit=2))
    assert len(build_suite(prompts).groups[f"{ATTACK}story"]) == 2
