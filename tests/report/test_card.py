"""The model card parses, tells the numbers of both sides, and what may be done with the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml
from report_examples import example

from seawall.report import ReportInputs, render_model_card


def parsed(inputs: ReportInputs) -> tuple[dict[str, Any], str]:
    start, head, body = render_model_card(inputs).split("---\n", 2)
    assert start == ""
    front = yaml.safe_load(head)
    assert isinstance(front, dict)
    return front, body


def test_the_front_matter_names_the_base_and_both_sides_of_every_group() -> None:
    front, _ = parsed(example(base_license="apache-2.0"))
    assert front["base_model"] == "example-org/walrus-moe-1b"
    assert front["license"] == "apache-2.0"
    (index,) = front["model-index"]
    for row, result in zip(example().groups, index["results"], strict=True):
        assert row.after is not None
        assert [metric["value"] for metric in result["metrics"]] == [row.before.rate, row.after.rate]


def test_the_card_names_revision_and_commit_of_the_base() -> None:
    manifest = example().manifest
    commit = "0123456789abcdef" * 2
    named = {**manifest, "model": {**manifest["model"], "commit": commit}}
    assert f"revision 5f0c2d1, commit {commit}" in parsed(replace(example(), manifest=named))[1]
    plain = {**manifest, "model": {**manifest["model"], "revision": None, "commit": commit}}
    assert f"revision {commit}" in parsed(replace(example(), manifest=plain))[1]


def test_the_body_holds_the_table() -> None:
    _, body = parsed(example())
    lines = [line for line in body.splitlines() if line.startswith("| Attack success: role play (trained on)")]
    (line,) = lines
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == ["93.3% (84.1–97.4%)", "0.0% (0.0–6.0%)", "−93.3 (−98.1 to −88.6)", "60"]
    assert "| Loss on gold answers, nats per token | 2.554 | 2.562 | | 160 |" in body


def test_it_tells_how_to_apply_and_revert_and_what_the_limits_are() -> None:
    _, body = parsed(example())
    assert "seawall apply DELTA --model example-org/walrus-moe-1b -o REPAIRED" in body
    assert "seawall apply DELTA --model REPAIRED --revert -o BASE-AGAIN" in body
    for heading in ("## Intended use", "## Limits", "## Licence", "## Provenance"):
        assert f"\n{heading}\n" in body
    assert "That the model is safe." in body


def test_a_licence_that_is_not_known_is_not_made_up() -> None:
    front, body = parsed(example())
    assert "license" not in front
    assert "which seawall does not know" in body


def test_a_local_model_is_named_by_its_folder_only() -> None:
    inputs = example()
    front, body = parsed(replace(inputs, summary={**inputs.summary, "model": "/home/somebody/models/walrus"}))
    assert "base_model" not in front
    assert "somebody" not in body + str(front)
    assert "# walrus, repaired with seawall" in body


def test_parity_is_told_where_it_is_known() -> None:
    inputs = example()
    assert "Parity certificate: passed, largest logit difference 0" in render_model_card(inputs)
    unknown = replace(inputs, summary={**inputs.summary, "parity": None})
    assert "see `parity.json`" in render_model_card(unknown)


def test_full_training_is_not_called_a_repair_of_experts() -> None:
    card = render_model_card(example(recipe={"seed": 1, "repair": {"parameters": "full"}}))
    assert "bit-identical" not in card
    assert "repair.parameters: full" in card


def test_lists_are_not_glued_together() -> None:
    _, body = parsed(example())
    tail = body.split("## Provenance", 1)[1].strip().splitlines()
    assert len(tail) == 5
    assert all(line.startswith("- ") for line in tail)
