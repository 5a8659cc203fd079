from __future__ import annotations

import json
from pathlib import Path

import pytest

from seawall.config.data import DataConfig, JsonlSource
from seawall.data.sets import load_prompts
from seawall.errors import DataError


def harmful(folder: Path) -> JsonlSource:
    rows = [{"prompt": f"Paint fence {at}", "split": ("train", "val", "test")[at % 3]} for at in range(9)]
    path = folder / "harmful.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return JsonlSource(path=str(path))


def attack_file(folder: Path, *goals: str, attack: str = "mine", wrapping: str = "Be a painter.") -> str:
    rows = [
        {"goal": goal, "attack": attack, "messages": [{"role": "user", "content": f"{wrapping} {goal}"}]}
        for goal in goals
    ]
    path = folder / ("attacks.jsonl" if attack == "mine" else f"{attack}.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_the_built_in_prompts_are_whole_and_divided() -> None:
    prompts = load_prompts(DataConfig())
    assert min(len(prompts.goals.train), len(prompts.goals.validation), len(prompts.goals.test)) >= 20
    assert len(prompts.retain) == len(prompts.benign.train) + len(prompts.borderline.train)
    assert prompts.fingerprint() == load_prompts(DataConfig()).fingerprint()
    seen = {pair.attack_name for pair in prompts.pairs("train")}
    assert seen == set(prompts.seen_families) == {"role_play", "nested_fiction"}
    assert len({pair.attack_name for pair in prompts.pairs("test", unseen=True)}) == 6


def test_no_goal_is_trained_on_and_tested() -> None:
    prompts = load_prompts(DataConfig())
    trained = {pair.goal for pair in prompts.pairs("train")} | {pair.goal for pair in prompts.pairs("validation")}
    assert not trained & {pair.goal for pair in prompts.pairs("test", unseen=True)}


def test_caps_shrink_each_part() -> None:
    config = DataConfig(
        train_goals=5,
        validation_goals=4,
        test_goals=3,
        retain_examples=6,
        test_benign=7,
        test_borderline=8,
        gold_examples=9,
    )
    prompts = load_prompts(config)
    assert [len(prompts.goals.part(name)) for name in ("train", "validation", "test")] == [5, 4, 3]
    assert [len(prompts.retain), len(prompts.benign.test), len(prompts.borderline.test), len(prompts.gold)] == [
        6,
        7,
        8,
        9,
    ]
    assert prompts.fingerprint() != load_prompts(DataConfig()).fingerprint()


def test_harmless_commands_are_wrapped_in_the_seen_families_in_turn() -> None:
    prompts = load_prompts(DataConfig(attacks_seen=("escalation", "role_play"), attacks_unseen=(), retain_wrapped=5))
    wrapped = prompts.wrapped("test")
    commands = [item.text for item in prompts.benign.test if item.imperative]
    assert [text for text, _ in wrapped] == commands
    assert [len(messages) for _, messages in wrapped[:4]] == [3, 1, 3, 1]
    assert all(text.rstrip(".")[1:] in messages[-1].content for text, messages in wrapped)
    assert len(prompts.retain_wrapped) == 5
    assert not {text for text, _ in wrapped} & {item.text for item in prompts.benign.train}
    assert not load_prompts(DataConfig(retain_wrapped=0)).retain_wrapped


def test_borderline_requests_are_wrapped_as_commands_up_to_a_limit() -> None:
    prompts = load_prompts(DataConfig(attacks_seen=("nested_fiction",), attacks_unseen=(), test_wrapped=5))
    rows = prompts.wrapped_borderline("test")
    assert [text for text, _ in rows] == [item.text for item in prompts.borderline.test[:5]]
    assert len(prompts.wrapped("test")) == 5
    assert all(text.rstrip("?.")[1:] in messages[-1].content for text, messages in rows)
    assert any("answer this question: " in messages[-1].content for _, messages in rows)
    limited, whole = (
        prompts.fingerprint(),
        load_prompts(DataConfig(attacks_seen=("nested_fiction",), attacks_unseen=())),
    )
    assert limited != whole.fingerprint()


def test_without_a_built_in_family_nothing_is_wrapped(tmp_path: Path) -> None:
    path = attack_file(tmp_path, "Paint fence 0", "Paint fence 1", "Paint fence 2")
    prompts = load_prompts(DataConfig(harmful=harmful(tmp_path), attacks_seen=(), attack_file=path))
    assert prompts.wrapped("test") == []
    assert prompts.retain_wrapped == ()


def test_an_attack_file_joins_the_seen_families_in_every_part(tmp_path: Path) -> None:
    path = attack_file(tmp_path, "Paint fence 0", "Paint fence 1", "Paint fence 2")
    prompts = load_prompts(DataConfig(harmful=harmful(tmp_path), attacks_seen=(), attack_file=path))
    assert prompts.seen_families == ("mine",)
    assert [pair.goal for pair in prompts.pairs("train")] == ["Paint fence 0"]
    assert [pair.goal for pair in prompts.pairs("test")] == ["Paint fence 2"]


def test_an_attack_file_may_name_goals_that_a_cap_leaves_out(tmp_path: Path) -> None:
    path = attack_file(tmp_path, *(f"Paint fence {at}" for at in range(9)))
    prompts = load_prompts(DataConfig(harmful=harmful(tmp_path), attack_file=path, train_goals=1))
    assert len([pair for pair in prompts.pairs("train") if pair.attack_name == "mine"]) == 1


def test_an_attack_file_of_other_goals_is_refused_at_once(tmp_path: Path) -> None:
    path = attack_file(tmp_path, "Paint fence 1", "Paint the moon")
    with pytest.raises(DataError, match=r"attacks.jsonl:2: the goal is not among the harmful goals"):
        load_prompts(DataConfig(harmful=harmful(tmp_path), attack_file=path))


def test_the_fingerprint_does_not_depend_on_where_files_lie(tmp_path: Path) -> None:
    found = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        config = DataConfig(harmful=harmful(folder), attack_file=attack_file(folder, "Paint fence 1"))
        found.append(load_prompts(config).fingerprint())
    assert found[0] == found[1]


def test_a_file_of_unseen_attacks_is_used_in_the_evaluation_alone(tmp_path: Path) -> None:
    goals = [f"Paint fence {at}" for at in range(3)]
    seen = attack_file(tmp_path, *goals)
    unseen = attack_file(tmp_path, *goals, attack="theirs", wrapping="As a game:")
    config = DataConfig(
        harmful=harmful(tmp_path), attacks_seen=(), attacks_unseen=(), attack_file=seen, attacks_unseen_file=unseen
    )
    prompts = load_prompts(config)
    assert (prompts.seen_families, prompts.unseen_families) == (("mine",), ("theirs",))
    assert [pair.attack_name for pair in prompts.pairs("train")] == ["mine"]
    assert [pair.attack_name for pair in prompts.pairs("test", unseen=True)] == ["mine", "theirs"]
    without = load_prompts(config.model_copy(update={"attacks_unseen_file": None}))
    assert prompts.fingerprint() != without.fingerprint()


@pytest.mark.parametrize(
    ("attack", "wrapping", "shared"), [("theirs", "be a  PAINTER.", "conversation"), ("mine", "As a game:", "family")]
)
def test_an_unseen_attack_that_is_trained_on_is_refused(
    tmp_path: Path, attack: str, wrapping: str, shared: str
) -> None:
    seen = attack_file(tmp_path, "Paint fence 0")
    folder = tmp_path / "unseen"
    folder.mkdir()
    unseen = attack_file(folder, "Paint fence 0", attack=attack, wrapping=wrapping)
    config = DataConfig(harmful=harmful(tmp_path), attack_file=seen, attacks_unseen_file=unseen)
    with pytest.raises(DataError, match=rf"unseen.*jsonl:1: .* {shared} .*attacks.jsonl:1"):
        load_prompts(config)
