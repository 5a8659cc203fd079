"""Live attacks: the conversation is built from the model's own replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from endpoints import completing, serving
from families import tiny, tiny_tokenizer
from places import TESTS
from seawall.config.engine import EndpointEngine
from seawall.config.eval import EvalConfig
from seawall.data.attacks import LIVE_ATTACKS
from seawall.data.pairs import make_pairs
from seawall.data.plugin_attacks import checked_attacks
from seawall.data.prompts import Goal
from seawall.data.twins import in_same_wrapping
from seawall.data.types import Judge, Message, Messages, Verdict, user
from seawall.errors import ArtifactError, ConfigError, SeawallError
from seawall.evaluation.collect import collect_samples
from seawall.evaluation.compare import compare
from seawall.evaluation.engines import OnReplies, Reply, make_engine
from seawall.evaluation.engines.transformers import TransformersEngine
from seawall.evaluation.samples import SampleLog, load_samples
from seawall.evaluation.suite import EvalPrompt, EvalSuite, asked, prompt_of
from seawall.models.generate import generate

GROUP = "attack:live_escalation"
GOALS = ("Paint the fence", "Bake a cake without asking the baker", "Hide the keys of the boat")


def _prompts() -> list[EvalPrompt]:
    live = [(goal, user(LIVE_ATTACKS["live_escalation"](goal)[0])) for goal in GOALS]
    return EvalSuite({"plain": [(goal, user(goal)) for goal in GOALS], GROUP: live}).prompts()


def _config(batch_size: int = 8) -> EvalConfig:
    return EvalConfig(max_new_tokens=6, batch_size=batch_size)


class _Judge:
    """Remembers what it judged."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[Messages] = []

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        self.seen += prompts
        return [Verdict("complied", "", self.name) for _ in prompts]


class _Parrot:
    """An engine that numbers the user's turns; `stop_after` calls of on_replies interrupt it."""

    def __init__(self, *, batch: int = 2, stop_after: int | None = None, silent: str = "") -> None:
        self.asked: list[Messages] = []
        self._batch, self._left, self._silent = batch, stop_after, silent

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        for start in range(0, len(prompts), self._batch):
            if self._left == 0:
                raise KeyboardInterrupt
            batch = prompts[start : start + self._batch]
            self.asked += batch
            on_replies(range(start, start + len(batch)), [self._reply(prompt) for prompt in batch])
            self._left = None if self._left is None else self._left - 1

    def _reply(self, prompt: Messages) -> Reply:
        text = f"reply {sum(message.role == 'user' for message in prompt)} to {prompt[-1].content[-12:]}"
        return Reply("" if self._silent and self._silent in prompt[-1].content else text, ended=True, tokens=3)


def _collect(engine: Any, path: Path, judge: Judge | None = None, config: EvalConfig | None = None) -> list[Any]:
    return collect_samples(engine, _prompts(), config or _config(), judge=judge or _Judge(), path=path)


def test_the_conversation_is_built_from_the_model_s_replies_and_judged_on_the_last_turn(tmp_path: Path) -> None:
    judge = _Judge()
    samples = [sample for sample in _collect(_Parrot(), tmp_path / "samples.jsonl", judge) if sample.group == GROUP]
    for sample in samples:
        assert [message.role for message in sample.prompt] == ["user", "assistant", "user", "assistant", "user"]
        assert [message.content for message in sample.prompt[::2]] == [*LIVE_ATTACKS["live_escalation"](sample.goal)]
        assert [message.content[:7] for message in sample.prompt[1::2]] == ["reply 1", "reply 2"]
        assert sample.response.startswith("reply 3")
        assert sample.prompt in judge.seen
    assert len(judge.seen) == len(_prompts())
    assert load_samples(tmp_path / "samples.jsonl")[-1].prompt == samples[-1].prompt


def test_a_plugin_s_turns_follow_the_model_s_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS / "small_package"))
    name = "seawall_verse:in_turns"
    (record,) = checked_attacks([name], GOALS)
    assert record.name == name
    pairs = make_pairs([Goal(str(number), goal) for number, goal in enumerate(GOALS)], [name])
    suite = EvalSuite({f"attack:{name}": [(pair.goal, pair.attack) for pair in pairs]}).prompts()
    path = tmp_path / "samples.jsonl"
    samples = collect_samples(_Parrot(), suite, _config(), judge=_Judge(), path=path)
    for goal, prompt, sample in zip(GOALS, suite, load_samples(path), strict=True):
        assert sample in samples
        assert sample.prompt[0] == Message("system", "You play games.")
        assert [message.content for message in sample.prompt[1::2]][-1] == f"Captain, your order: {goal}"
        assert [message.content[:7] for message in sample.prompt[2::2]] == ["reply 1", "reply 2"]
        assert asked(sample) == asked(prompt) == prompt.prompt == sample.prompt[:2]
        assert prompt_of(sample) == prompt
    assert collect_samples(_Parrot(stop_after=0), suite, _config(), judge=_Judge(), path=path) == samples
    assert in_same_wrapping(pairs[0], "Draw the bat") is None
    monkeypatch.setattr("seawall.data.plugin_attacks._LOADED", {})
    assert asked(samples[0]) == suite[0].prompt
    with pytest.raises(ConfigError, match="a plugin that is not loaded"):
        prompt_of(samples[0])


def test_batches_of_one_and_of_eight_hold_the_same_conversation(tmp_path: Path) -> None:
    model, tokenizer = tiny("olmoe", max_position_embeddings=2048), tiny_tokenizer()
    conversations = []
    for size in (1, 8):
        engine = TransformersEngine(model, tokenizer, size)
        samples = _collect(engine, tmp_path / f"{size}.jsonl", config=_config(size))
        conversations.append([(sample.prompt, sample.response) for sample in samples if sample.group == GROUP])
    assert conversations[0] == conversations[1]
    prompt, _ = conversations[0][0]
    (first,) = generate(model, tokenizer, [prompt[:1]], max_new_tokens=6, batch_size=1)
    assert prompt[1] == Message("assistant", first.answer.strip())


def test_an_endpoint_holds_the_same_conversation_as_the_model_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model, tokenizer = tiny("olmoe", max_position_embeddings=2048), tiny_tokenizer()
    here = _collect(TransformersEngine(model, tokenizer, 8), tmp_path / "here.jsonl")
    with serving(completing(model, tokenizer)) as url:
        config = EvalConfig(engine=EndpointEngine(base_url=url, model="tiny", timeout=60.0), max_new_tokens=6)
        there = _collect(make_engine(config), tmp_path / "there.jsonl", config=config)
    assert [sample.prompt for sample in there] == [sample.prompt for sample in here]
    assert [sample.response for sample in there] == [sample.response for sample in here]


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_an_interrupted_conversation_goes_on_where_it_stopped(tmp_path: Path, stop_after: int) -> None:
    path, config = tmp_path / "samples.jsonl", _config(2)
    expected = _collect(_Parrot(), tmp_path / "whole.jsonl", config=config)
    interrupted = _Parrot(stop_after=stop_after)
    try:
        _collect(interrupted, path, config=config)
    except KeyboardInterrupt:
        resumed = _Parrot()
        assert _collect(resumed, path, config=config) == expected
        whole = 2 * len(GOALS) + len(_prompts())
        # A partial last batch of a turn (one of three prompts) may be asked again.
        assert len(interrupted.asked) + len(resumed.asked) <= whole + 1
    files = [(tmp_path / name).read_text("utf-8") for name in ("whole.live.jsonl", "samples.live.jsonl")]
    assert files[0] == files[1]


def test_a_turn_without_a_reply_ends_as_unscored_with_the_reason(tmp_path: Path) -> None:
    silent = LIVE_ATTACKS["live_escalation"](GOALS[0])[1]
    samples = _collect(_Parrot(silent=silent), tmp_path / "samples.jsonl")
    broken = [sample for sample in samples if sample.group == GROUP and sample.prompt[-1].content == silent]
    assert broken
    assert {sample.label for sample in broken} == {"unscored"}
    assert all("turn 2: the model gave no answer" in sample.reason for sample in broken)
    assert all(sample.label == "complied" for sample in samples if sample not in broken)


def test_an_endpoint_that_does_not_answer_stops_the_evaluation(tmp_path: Path) -> None:
    def silent(prompts: Sequence[Messages], *, on_replies: OnReplies, **_: Any) -> None:
        lost = Reply("", ended=None, tokens=None, problem="no connection", final=False)
        on_replies(range(len(prompts)), [lost] * len(prompts))

    with pytest.raises(SeawallError, match="no connection"):
        _collect(silent, tmp_path / "samples.jsonl")


def test_a_damaged_file_of_turns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.live.jsonl").write_text(json.dumps({"turn": 0}) + "\n", "utf-8")
    with pytest.raises(ArtifactError, match=r"samples.live.jsonl:1"):
        _collect(_Parrot(), tmp_path / "samples.jsonl")


def test_two_models_are_compared_though_their_conversations_differ(tmp_path: Path) -> None:
    before = _collect(_Parrot(), tmp_path / "before.jsonl")
    after = _collect(_Parrot(batch=3, silent="villain"), tmp_path / "after.jsonl")
    assert [asked(sample) for sample in before] == [asked(sample) for sample in after]
    assert GROUP in compare(before, after, resamples=50, seed=0)


def test_a_condition_of_an_audit_asks_the_turns_anew_and_reopens_either_conversation(tmp_path: Path) -> None:
    before, after = (_collect(_Parrot(silent=word), tmp_path / f"{word}.jsonl") for word in ("", "villain"))
    prompts = [prompt_of(sample) for sample in before]
    assert prompts == _prompts()
    path = tmp_path / "reused.jsonl"
    SampleLog(path, prompts).append(after)
    assert SampleLog(path, prompts).samples == after
