"""Three downstream tasks for the comparison of `benchmarks/safegene.py`, as JSONL of prompts and completions.

    python benchmarks/safegene_tasks.py ../shared/data/mmlu_val.jsonl -o runs/tasks

`messages`: the classification task that is shipped with seawall; `fields`: which of five fields a question of MMLU is
from; `dates`: a date in words rewritten as figures, made here. Each has a file to train on and one to score on, with no
prompt in both.
"""

from __future__ import annotations

import argparse
import json
import random
from datetime import date, timedelta
from pathlib import Path

from seawall.data.customer_messages import customer_messages
from seawall.data.files import json_lines
from seawall.data.types import Exchange

FIELDS = {
    "mathematics": ("abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics"),
    "medicine": ("anatomy", "clinical_knowledge", "college_medicine", "nutrition", "virology"),
    "psychology": ("high_school_psychology", "professional_psychology"),
    "economics": ("econometrics", "high_school_macroeconomics", "high_school_microeconomics", "marketing"),
    "philosophy": ("logical_fallacies", "moral_disputes", "philosophy", "world_religions"),
}
_ASKED = "Which field is this question from: mathematics, medicine, psychology, economics or philosophy?"
_LONGEST = 400
_FORMS = ("%B {day}, %Y", "{day} %B %Y", "%A, {day} %B %Y", "the {day}. of %B in %Y", "%b {day} %Y")
_DATES = "Write this date as year-month-day in figures: {written}"
_TRAIN, _TEST = 240, 80
Rows = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mmlu", type=Path, help="JSONL with `subject` and `question`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    tasks = {"messages": _messages(), "fields": _fields(options.mmlu), "dates": _dates()}
    for name, parts in tasks.items():
        for part, rows in zip(("train", "test"), parts, strict=True):
            path = options.output / f"{name}-{part}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")


def _messages() -> tuple[Rows, Rows]:
    ours = customer_messages()
    return [_row(one) for one in ours.train], [_row(one) for one in ours.test[:_TEST]]


def _row(one: Exchange) -> dict[str, str]:
    return {"prompt": one.prompt[-1].content, "completion": one.response}


def _fields(path: Path) -> tuple[Rows, Rows]:
    field = {subject: name for name, subjects in FIELDS.items() for subject in subjects}
    found = {
        row.text("question"): field[row.text("subject")] for row in json_lines(path) if row.text("subject") in field
    }
    short = sorted(text for text in found if len(text) <= _LONGEST)
    by_field = {name: [text for text in short if found[text] == name] for name in FIELDS}
    draw = random.Random("seawall fields")
    for texts in by_field.values():
        draw.shuffle(texts)
    each = (_TRAIN + _TEST) // len(FIELDS)
    rows = [(text, name) for name, texts in by_field.items() for text in texts[:each]]
    draw.shuffle(rows)
    made = [{"prompt": f"{_ASKED}\n\n{text}", "completion": name} for text, name in rows]
    return made[_TEST:], made[:_TEST]


def _dates() -> tuple[Rows, Rows]:
    draw = random.Random("seawall dates")
    days = draw.sample(range(60_000), _TRAIN + _TEST)
    made = []
    for number in days:
        day = date(1900, 1, 1) + timedelta(days=number)
        written = day.strftime(draw.choice(_FORMS)).format(day=day.day)
        made.append({"prompt": _DATES.format(written=written), "completion": day.isoformat()})
    return made[_TEST:], made[:_TEST]


if __name__ == "__main__":
    main()
