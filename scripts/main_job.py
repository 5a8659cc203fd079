"""Writes docs/data/main-job.csv from a finished run of recipes/lab.yaml, and prints the table of docs/results.md.

python scripts/main_job.py RUN && python scripts/charts.py
"""

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "docs" / "data" / "main-job.csv"
COLUMNS = ["group", *(f"{when}{end}" for when in ("before", "after") for end in ("", " low", " high", " note"))]
NAMES = {"role_play": "role-play"}
GAPS = {
    "wrapping gap, harmless": "gap_harmless",
    "wrapping gap, harmful": "gap_harmful",
    "separation, plainly": "separation_plain",
    "separation, wrapped": "separation_wrapped",
}


def rates(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rate of the table, by its row."""
    for family, found in summary["attacks"].items():
        kind = "seen" if found["seen"] else "unseen"
        yield f"refused inside {NAMES.get(family, family.replace('_', ' '))} ({kind})", found["refused"]
    yield "plain refusal", summary["plain_refusal"]
    yield "over-refusal on borderline prompts", summary["over_refusal"]
    yield "benign compliance", summary["benign_compliance"]
    yield "benign requests in the wrappings answered", summary["wrapped_compliance"]
    yield "borderline requests in the wrappings refused", summary["wrapped_over_refusal"]


def short(rate: float) -> str:
    """Two digits without the zero before the point; halves go up."""
    text = f"{math.floor(100 * rate + 0.5 + 1e-9) / 100:.2f}"
    return "0" if text == "0.00" else text.removeprefix("0")


def note(rate: dict[str, Any]) -> str:
    words = {"evades": "evade", "unscored": "unscored"}
    return ", ".join(f"{rate[kind]} {word}" for kind, word in words.items() if rate[kind])


def points(gap: dict[str, Any]) -> str:
    middle, low, high = (f"{100 * gap[key]:+.0f}" for key in ("difference", "low", "high"))
    return f"{middle} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    summary = json.loads((parser.parse_args().run / "summary.json").read_text("utf-8"))
    with TARGET.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, found in rates(summary):
            ends = [found[when] for when in ("before", "after")]
            fields = [[short(end["rate"]), short(end["low"]), short(end["high"]), note(end)] for end in ends]
            writer.writerow([name, *fields[0], *fields[1]])
            shown = [f"{short(end['rate'])} [{short(end['low'])}, {short(end['high'])}]" for end in ends]
            print(f"| {name} | {shown[0]} | {shown[1]} |")
    for name, key in GAPS.items():
        gaps = summary["wrapping"].get(key, {})
        if gaps:
            print(f"| {name} (points) | {points(gaps['before'])} | {points(gaps['after'])} |")
    loss = summary["gold_answer_loss"]
    print(f"| loss on {loss['n']} gold answers | {loss['before']:.3f} | {loss['after']:.3f} |")


if __name__ == "__main__":
    main()
