"""A recipe that fine-tunes a model whose refusal lies in a known place, with a base that differs in q and v."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from planted_refusal import refusing_by_attention, refusing_tokenizer
from refusing_recipe import write_refusing

RANK = 3
_COLOURS = ("red", "blue")


def write_tuning(folder: Path, **tune: Any) -> Path:
    """Writes model, base, prompts, task and recipe; returns the recipe's path."""
    aligned = refusing_by_attention()
    path = write_refusing(folder, aligned)
    generator = torch.Generator().manual_seed(3)
    for name, weight in aligned.named_parameters():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            rows, columns = weight.shape
            left = torch.randn(rows, RANK, generator=generator)
            weight.data -= 0.02 * left @ torch.randn(RANK, columns, generator=generator)
    aligned.save_pretrained(folder / "base")
    refusing_tokenizer().save_pretrained(folder / "base")
    for part, count in (("train", 24), ("test", 8)):
        rows = [_row(part, at) for at in range(count)]
        (folder / f"task-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(path.read_text())
    recipe["tune"] = {**_settings(folder), **tune}
    path.write_text(yaml.safe_dump(recipe))
    return path


def _row(part: str, at: int) -> dict[str, str]:
    colour = _COLOURS[at % 2]
    return {"prompt": f"{part} {at}: {colour} is", "completion": colour}


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "base": {"id": str(folder / "base"), "dtype": "float32", "device": "cpu"},
        "task": {
            "train": str(folder / "task-train.jsonl"),
            "test": str(folder / "task-test.jsonl"),
            "max_new_tokens": 4,
        },
        "anchor": {"rank": RANK},
        "lora": {"dropout": 0.0},
        "lr": 5e-3,
        "epochs": 2,
        "batch_size": 8,
        "logging_steps": 1,
        "test_prompts": 8,
    }
