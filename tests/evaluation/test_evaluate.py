from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from families import tiny, tiny_tokenizer
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.groups import GROUPS, target
from seawall.config.data import DataConfig
from seawall.config.eval import EvalConfig
from seawall.data.prompts import Gold
from seawall.data.sets import load_prompts
from seawall.data.types import Message, Messages, Verdict, user
from seawall.errors import ArtifactError
from seawall.evaluation.compare import compare
from seawall.evaluation.judges.keyword import KeywordJudge
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.run import SAMPLES, evaluate
from seawall.evaluation.samples import load_samples
from seawall.evaluation.suite import EvalSuite, build_suite

GOALS = ["paint the fence", "bake a very large cake with cherries", "sing", "walk the dog around the old mill"]
SUITE = EvalSuite(
    {
        "plain": [(goal, user(goal)) for goal in GOALS],
        "attack:echo": [
            (goal, (*user("Hi"), Message("assistant", "Yes?"), Message("user", goal * 2))) for goal in GOALS
        ],
        "benign": [(text, user(text)) for text in ("count to three", "name a bird")],
    },
    [Gold("a", "2 + 2?", "4"), Gold("b", "Who wrote Hamlet?", "Shakespeare")],
)
CONFIG = EvalConfig(max_new_tokens=5, batch_size=3, bootstrap=200)
BATCHES = 4


@dataclass
class EveryOther:
    """A judge that calls replies refused, complied, unscored in turn, and ends the process before a given batch."""

    stop_at: int | None = None
    name: str = "every_other"
    asked: list[str] = field(default_factory=list)
    batches: int = 0

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        if self.batches == self.stop_at:
            raise KeyboardInterrupt
        self.batches += 1
        self.asked += [prompt[-1].content for prompt in prompts]
        labels = [("refused", "complied", "unscored")[len(prompt[-1].content) % 3] for prompt in prompts]
        return [Verdict(label, "by length", self.name) for label in labels]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("olmoe")


def run(model: PreTrainedModel, folder: Path, judge: EveryOther, suite: EvalSuite = SUITE) -> EvalResult:
    return evaluate(model, tiny_tokenizer(), suite, CONFIG, judge=judge, folder=folder, fingerprint="sha256:x")


def test_every_group_has_its_rate_and_every_prompt_its_sample(model: PreTrainedModel, tmp_path: Path) -> None:
    result = run(model, tmp_path, EveryOther())
    samples = load_samples(tmp_path / SAMPLES)
    assert list(result.groups) == ["plain", "attack:echo", "benign"]
    assert {sample.id for sample in samples} == {asked.id for asked in SUITE.prompts()}
    for group, rate in result.groups.items():
        rows = [sample for sample in samples if sample.group == group]
        labels, goals = [sample.label for sample in rows], [sample.goal for sample in rows]
        assert rate == rate_with_interval(labels, goals, target(group))
        assert rate.n == len(SUITE.groups[group])
    assert result.gold_n == 2
    assert result.gold_loss is not None
    assert result.gold_loss > 0
    assert result.model_fingerprint == "sha256:x"


def test_samples_are_what_was_asked_said_and_judged(model: PreTrainedModel, tmp_path: Path) -> None:
    run(model, tmp_path, EveryOther())
    asked = {one.id: one for one in SUITE.prompts()}
    for sample in load_samples(tmp_path / SAMPLES):
        one = asked[sample.id]
        assert (sample.prompt, sample.group, sample.goal) == (one.prompt, one.group, one.goal)
        assert sample.reason == "by length"
    first = json.loads((tmp_path / SAMPLES).read_text("utf-8").splitlines()[0])
    assert set(first) == {"id", "group", "goal", "prompt", "response", "label", "reason"}


def test_the_same_weights_give_the_same_bytes(model: PreTrainedModel, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        result = run(model, folder, EveryOther())
        contents.append(((folder / SAMPLES).read_bytes(), result))
    assert contents[0] == contents[1]


@pytest.mark.parametrize("torn", [b"", b'{"id": "plain/0000", "gro', b"\xff\xfe"])
@pytest.mark.parametrize("stop_at", range(BATCHES))
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(
    model: PreTrainedModel, tmp_path: Path, stop_at: int, torn: bytes
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    complete = EveryOther()
    expected = run(model, whole, complete)
    with pytest.raises(KeyboardInterrupt):
        run(model, parts, EveryOther(stop_at=stop_at))
    with (parts / SAMPLES).open("ab") as handle:
        handle.write(torn)
    again = EveryOther()
    assert run(model, parts, again) == expected
    assert (parts / SAMPLES).read_bytes() == (whole / SAMPLES).read_bytes()
    assert again.asked == complete.asked[3 * stop_at :]


def test_a_batch_written_in_part_is_done_again(model: PreTrainedModel, tmp_path: Path) -> None:
    run(model, tmp_path, EveryOther())
    whole = (tmp_path / SAMPLES).read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(b"".join(lines[:4]) + lines[4][:20])
    again = EveryOther()
    run(model, tmp_path, again)
    assert again.batches == 3
    assert (tmp_path / SAMPLES).read_bytes() == whole


def test_a_finished_evaluation_generates_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    first = run(model, tmp_path, EveryOther())
    again = EveryOther(stop_at=0)
    assert run(model, tmp_path, again) == first
    assert again.asked == []


def test_samples_of_another_suite_are_not_mixed_in(model: PreTrainedModel, tmp_path: Path) -> None:
    run(model, tmp_path, EveryOther())
    before = (tmp_path / SAMPLES).read_bytes()
    other = EvalSuite({"plain": [(goal, user(goal.upper())) for goal in GOALS]})
    with pytest.raises(ArtifactError, match="holds samples of another evaluation"):
        run(model, tmp_path, EveryOther(), other)
    assert (tmp_path / SAMPLES).read_bytes() == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{}", "KeyError"),
        (b"nonsense", "JSONDecodeError"),
        (b"[]", "TypeError"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(model: PreTrainedModel, tmp_path: Path, line: bytes, says: str) -> None:
    run(model, tmp_path, EveryOther())
    lines = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(lines[0] + line + b"\n" + lines[2])
    with pytest.raises(ArtifactError, match=rf"samples\.jsonl:2: .*; got {says}"):
        load_samples(tmp_path / SAMPLES)


def test_a_changed_verdict_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    run(model, tmp_path, EveryOther())
    text = (tmp_path / SAMPLES).read_text("utf-8")
    (tmp_path / SAMPLES).write_text(text.replace('"label": "refused"', '"label": "safe"'), "utf-8")
    with pytest.raises(ArtifactError, match="unknown verdict; got 'safe'"):
        load_samples(tmp_path / SAMPLES)


def test_missing_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read; got No such file"):
        load_samples(tmp_path / SAMPLES)


def test_gold_can_be_left_out_and_progress_covers_everything(model: PreTrainedModel, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    evaluate(
        model,
        tiny_tokenizer(),
        SUITE,
        CONFIG,
        judge=KeywordJudge(),
        folder=tmp_path,
        fingerprint="x",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(3, 12), (6, 12), (9, 12), (10, 12), (12, 12)]
    without = CONFIG.model_copy(update={"gold": False})
    result = evaluate(model, tiny_tokenizer(), SUITE, without, judge=KeywordJudge(), folder=tmp_path, fingerprint="x")
    assert (result.gold_loss, result.gold_n) == (None, 0)


def test_results_survive_the_disk(model: PreTrainedModel, tmp_path: Path) -> None:
    result = run(model, tmp_path, EveryOther())
    result.save(tmp_path)
    assert EvalResult.load(tmp_path) == result


class TestCompare:
    def test_before_and_after_side_by_side(self, model: PreTrainedModel, tmp_path: Path) -> None:
        other = tiny("olmoe", seed=1)
        sides = []
        for name, one in (("before", model), ("after", other)):
            folder = tmp_path / name
            folder.mkdir()
            result = run(one, folder, EveryOther())
            sides.append((result, load_samples(folder / SAMPLES)))
        table = compare(sides[0][1], sides[1][1], resamples=200)
        assert set(table) == set(SUITE.groups)
        for group, row in table.items():
            assert row.before == sides[0][0].groups[group]
            assert row.after == sides[1][0].groups[group]
            if row.before.rate is not None and row.after.rate is not None:
                assert row.change.difference == pytest.approx(row.after.rate - row.before.rate)
            else:
                assert (row.change.goals, row.change.p) == (0, 1.0)
            assert row.target == target(group)

    def test_samples_of_different_prompts_are_refused(self, model: PreTrainedModel, tmp_path: Path) -> None:
        run(model, tmp_path, EveryOther())
        samples = load_samples(tmp_path / SAMPLES)
        with pytest.raises(ArtifactError, match="got 10 and 9 samples, 1 differing, such as"):
            compare(samples, samples[1:])
        with pytest.raises(ArtifactError, match="got 9 and 10 samples, 0 differing"):
            compare(samples[1:], samples)


class TestSuite:
    def test_the_test_suite_holds_every_group(self) -> None:
        prompts = load_prompts(DataConfig(test_goals=5, test_benign=6, test_borderline=7, gold_examples=8))
        suite = build_suite(prompts)
        sizes = {group: len(rows) for group, rows in suite.groups.items()}
        families = ("role_play", "nested_fiction", "persuasion", "escalation", "forced_opening", "reversed_text")
        harmless = {"borderline": 7, "benign": 6, "wrapped": len(prompts.wrapped("test"))}
        assert 0 < harmless["wrapped"] <= 6
        assert sizes == {"plain": 5, **{f"attack:{name}": 5 for name in families}, **harmless}
        assert len(suite.gold) == 8
        assert {goal for goal, _ in suite.groups["attack:persuasion"]} == {goal.text for goal in prompts.goals.test}
        measured = build_suite(prompts, wrapping=True)
        assert len(measured.groups["wrapped_borderline"]) == 7
        assert measured.wrapped_in == ("role_play", "nested_fiction")
        ids = [asked.id for asked in suite.prompts()]
        assert len(set(ids)) == len(ids) == sum(sizes.values())

    def test_the_validation_suite_holds_what_a_repair_may_look_at(self) -> None:
        prompts = load_prompts(DataConfig(validation_goals=4))
        suite = build_suite(prompts, "validation", unseen=False, gold=False)
        assert [group for group in suite.groups if group.startswith("attack:")] == [
            "attack:role_play",
            "attack:nested_fiction",
        ]
        assert not suite.gold
        tested = {goal for rows in build_suite(prompts).groups.values() for goal, _ in rows}
        assert not tested & {goal for rows in suite.groups.values() for goal, _ in rows}

    def test_what_each_group_counts(self) -> None:
        assert [target(group) for group in ("plain", "borderline", "benign", "attack:any")] == [
            "refused",
            "refused",
            "complied",
            "complied",
        ]
        assert set(GROUPS) == {"plain", "borderline", "benign", "wrapped", "wrapped_borderline"}


def test_evaluation_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny("olmoe")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, tmp_path, EveryOther())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
