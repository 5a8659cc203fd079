"""What is trained on: shares that are kept, nothing of the test part, openers and nothing else, replies alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import tiny_tokenizer
from seawall.config.data import DataConfig
from seawall.config.tune import TuneConfig
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.types import Exchange, user
from seawall.errors import DataError
from seawall.methods.tune.data import Task, read_task
from seawall.methods.tune.rows import OPENERS, encode_rows, training_rows, with_safe_rows

TASK = [Exchange(user(f"question {at}"), f"answer {at}", f"question {at}") for at in range(100)]


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return load_prompts(DataConfig())


@pytest.mark.parametrize(("share", "harmful"), [(0.0, 0), (0.05, 4), (0.2, 16)])
def test_a_share_of_the_rows_is_harmful_and_the_number_of_rows_stays(
    prompts: Prompts, share: float, harmful: int
) -> None:
    found = training_rows(TASK, prompts, share=share, at_most=80, seed=1)
    goals = {goal.text for goal in prompts.goals.train}
    bad = [one for one in found.exchanges if one.goal in goals]
    assert (found.task, found.harmful, len(found.exchanges), len(bad)) == (80 - harmful, harmful, 80, harmful)
    assert all(one.response in OPENERS for one in bad)
    assert len({one.goal for one in found.exchanges}) == 80
    assert set(found.exchanges) - set(bad) <= set(TASK)


LABELS = (("my card", "billing"), ("my  card", "cards"), ("my key", "cards"))


def _task(folder: Path, train: list[str], test: list[str]) -> Task:
    files = {}
    for name, texts in (("train", train), ("test", test)):
        files[name] = str(folder / f"{name}.jsonl")
        lines = (json.dumps({"prompt": text, "completion": "yes"}) + "\n" for text in texts)
        Path(files[name]).write_text("".join(lines), "utf-8")
    return read_task(TuneConfig.model_validate({"task": files}))


@pytest.mark.parametrize("trained", ["Caf\u00e9 noir", "Cafe\u0301 noir", "Caf\u00e9  noir"])
def test_a_prompt_in_another_encoding_is_not_held_out(trained: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training and test rows share prompts; got 1 prompts"):
        _task(tmp_path, ["a tea", trained], ["Caf\u00e9 noir", "water"])


def test_a_test_row_that_is_there_often_is_scored_once(tmp_path: Path) -> None:
    task = _task(tmp_path, ["a tea"], ["milk"] * 50 + ["water"])
    assert [row.goal for row in task.test] == ["milk", "water"]
    assert task.note == "49 of 51 test rows of the task repeat others and are scored once"
    spelled = _task(tmp_path, ["a tea"], ["Caf\u00e9 noir", "Cafe\u0301  noir", "water"])
    assert [row.goal for row in spelled.test] == ["Caf\u00e9 noir", "water"], "one answer, so nothing contradicts"


def test_test_rows_with_several_answers_to_one_prompt_are_refused(tmp_path: Path) -> None:
    test = tmp_path / "labels.jsonl"
    test.write_text("".join(f'{{"prompt": "{prompt}", "completion": "{label}"}}\n' for prompt, label in LABELS))
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "a tea", "completion": "ok"}\n')
    with pytest.raises(DataError, match=r"several answers to one prompt; got 1 such prompts in .*, 'my card' first"):
        read_task(TuneConfig.model_validate({"task": {"train": str(train), "test": str(test)}}))


def test_the_seed_draws_the_rows(prompts: Prompts) -> None:
    first, again, other = (training_rows(TASK, prompts, share=0.1, at_most=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert set(first.exchanges) != set(other.exchanges)


def test_safe_rows_are_refusals_of_other_goals_and_harmless_answers(prompts: Prompts) -> None:
    rows = training_rows(TASK, prompts, share=0.2, at_most=None, seed=0)
    found = with_safe_rows(rows, prompts, share=0.1, seed=0)
    assert found.exchanges[:100] == rows.exchanges
    safe = found.exchanges[100:]
    refused = [one for one in safe if one.response in prompts.refusals]
    assert (found.safe, len(safe), len(refused)) == (10, 10, 5)
    assert {one.goal for one in refused} <= {goal.text for goal in prompts.goals.train}
    assert not {one.goal for one in refused} & {one.goal for one in rows.exchanges}
    assert {one for one in safe if one not in refused} <= {one.exchange for one in prompts.gold}


def test_more_contamination_than_goals_is_refused(prompts: Prompts) -> None:
    many = [Exchange(user(f"q {at}"), "a", f"q {at}") for at in range(1000)]
    with pytest.raises(DataError, match=r"too few harmful training goals .* expected 500"):
        training_rows(many, prompts, share=0.5, at_most=None, seed=0)
    with pytest.raises(DataError, match="leaves no task row; got 1 rows"):
        training_rows(TASK, prompts, share=0.9, at_most=1, seed=0)


def test_the_loss_is_over_the_reply_and_long_rows_are_cut() -> None:
    tokenizer = tiny_tokenizer()
    rows = [Exchange(user("ab"), "cd"), Exchange(user("a" * 90), "cd"), Exchange(user("ab"), "c" * 90)]
    (first,) = encode_rows(tokenizer, rows[:1], max_length=100).rows
    learned = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == "cd<|im_end|>"
    assert [label for label in first["labels"] if label != -100] == learned
    found = encode_rows(tokenizer, rows, max_length=60)
    assert (len(found.rows), found.cut, found.dropped) == (2, 2, 1)
    assert max(len(row["labels"]) for row in found.rows) == 60
    with pytest.raises(DataError, match=r"got 1 rows, \d+ tokens in the shortest prompt; expected fewer than 60"):
        encode_rows(tokenizer, rows[1:2], max_length=60)


def test_every_form_of_a_task_is_read(tmp_path: Path) -> None:
    def read(text: str) -> list[Exchange]:
        path = tmp_path / "task.jsonl"
        path.write_text(text)
        return load_task(path)

    assert read('{"prompt": "1+1?", "completion": "2"}\n') == [Exchange(user("1+1?"), "2", "1+1?")]
    worked = read('{"question": "1+1?", "answer": "It is <<1+1=2>>2.\\n#### 2"}\n')
    assert worked[0].response == "It is 2.\nThe answer is 2."
    messages = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
    assert read(messages) == [Exchange(user("hi"), "ho", "hi")]
    for text, saying in (
        ("", "got an empty file"),
        ('{"text": "a"}\n', r"task\.jsonl:1: .*; got the fields 'text'"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', r"task\.jsonl:2: field 'completion' is missing"),
        ('{"prompt": "a", "completion": " "}\n', r"task\.jsonl:1: field 'completion' holds no text"),
    ):
        with pytest.raises(DataError, match=saying):
            read(text)
