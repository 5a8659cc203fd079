"""Both engines write the same; an endpoint that fails loses no sample; replies are judged at several lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from endpoints import FAULTS, HttpReply, Script, completing, serving
from families import tiny, tiny_tokenizer
from known import known
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.groups import target
from seawall.config.engine import EndpointEngine
from seawall.config.eval import EvalConfig
from seawall.data.answers import ReplyParts
from seawall.data.types import NO_ANSWER, NO_REPLY, Message, Messages, Verdict, user
from seawall.errors import ArtifactError, ConfigError, SeawallError
from seawall.evaluation.answers import ANSWERS
from seawall.evaluation.collect import judged_samples
from seawall.evaluation.engines import Reply, make_engine
from seawall.evaluation.judges.keyword import KeywordJudge
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.run import SAMPLES, evaluate, evaluate_engine
from seawall.evaluation.samples import load_samples
from seawall.evaluation.suite import EvalPrompt, EvalSuite
from seawall.models.generate import generate

TOKENIZER = tiny_tokenizer()
PROMPTS: list[Messages] = [
    *[user(f"Paint fence number {at}" + " again" * (at % 4)) for at in range(8)],
    (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Sing.")),
    user("Grüße aus Köln 🐦"),
]
SUITE = EvalSuite({"plain": [(f"goal {at}", user(f"Goal {at}")) for at in range(40)]})
FAST: dict[str, Any] = {"model": "tiny", "backoff": 0.001, "max_backoff": 0.01, "timeout": 0.5, "concurrency": 8}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("olmoe")


@dataclass
class ByLength:
    """A judge that calls short texts refused and others complied, and keeps what it was given."""

    limit: int = 3
    name: str = "by_length"
    given: list[str] = field(default_factory=list)

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        self.given += responses
        return [Verdict("complied" if len(text) > self.limit else "refused", "long", self.name) for text in responses]


def at_endpoint(url: str, **changes: Any) -> EvalConfig:
    own = {name: changes.pop(name) for name in [*changes] if name in EndpointEngine.model_fields}
    engine = EndpointEngine(base_url=url, **{**FAST, **own})
    return EvalConfig(**{"engine": engine, "max_new_tokens": 6, "bootstrap": 100, "gold": False, **changes})


def collect(config: EvalConfig, model: PreTrainedModel, *, new: int, lengths: Sequence[int]) -> list[Reply]:
    found: dict[int, Reply] = {}
    make_engine(config, (model, TOKENIZER))(
        PROMPTS,
        max_new_tokens=new,
        lengths=lengths,
        on_replies=lambda at, replies: found.update(zip(at, replies, strict=True)),
    )
    return [found[at] for at in range(len(PROMPTS))]


class TestBothEngines:
    def test_the_same_prompts_give_the_same_texts_and_prefixes(self, model: PreTrainedModel) -> None:
        here = collect(EvalConfig(batch_size=3), model, new=12, lengths=[2, 5, 12])
        script = completing(model, TOKENIZER)
        with serving(script) as url:
            there = collect(at_endpoint(url, timeout=30.0), model, new=12, lengths=[2, 5, 12])
        assert [reply.text for reply in there] == [reply.text for reply in here]
        assert [reply.cuts for reply in there] == [reply.cuts for reply in here]
        assert [reply.ended for reply in there] == [reply.ended for reply in here]
        assert len({reply.text for reply in here}) > 5
        assert all(set(reply.cuts) == {2, 5} for reply in here if not reply.ended)
        assert {body["max_tokens"] for body in script.bodies} == {12}
        assert [message.as_dict() for message in PROMPTS[8]] in [body["messages"] for body in script.bodies]

    def test_an_evaluation_gives_the_same_samples(self, model: PreTrainedModel, tmp_path: Path) -> None:
        lengths: dict[str, Any] = {"lengths": (2, 4), "max_new_tokens": 6}
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        there.mkdir()
        local = EvalConfig(bootstrap=100, gold=False, batch_size="auto", **lengths)
        one = evaluate(model, TOKENIZER, SUITE, local, judge=ByLength(), folder=here, fingerprint="x")
        with serving(completing(model, TOKENIZER)) as url:
            config = at_endpoint(url, timeout=30.0, **lengths)
            two = ask(config, there, ByLength())
        assert one == two
        first, second = (sorted(load_samples(folder / SAMPLES), key=lambda s: s.id) for folder in (here, there))
        assert first == second

    def test_prefixes_are_cut_by_tokens_also_inside_a_character(self, model: PreTrainedModel) -> None:
        replies = collect(EvalConfig(batch_size=3), model, new=9, lengths=range(1, 9))
        alone = generate(model, TOKENIZER, PROMPTS, max_new_tokens=9, batch_size=1)
        for reply, one in zip(replies, alone, strict=True):
            assert reply.tokens == len(one.token_ids)
            for length in range(1, 10):
                assert reply.after(length).answer == TOKENIZER.decode(one.token_ids[:length], skip_special_tokens=True)


def ask(config: EvalConfig, folder: Path, judge: Any = None) -> EvalResult:
    engine = make_engine(config, folder=folder)
    return evaluate_engine(engine, SUITE, config, judge=judge or ByLength(), folder=folder, fingerprint="x")


def answering() -> Script:
    return Script(lambda question: f"About {question}")


def responses(folder: Path) -> list[str]:
    return [sample.response for sample in sorted(load_samples(folder / SAMPLES), key=lambda one: one.id)]


EXPECTED = [f"About Goal {at}" for at in range(40)]


class TestAFaultyEndpoint:
    def test_no_sample_is_lost(self, tmp_path: Path) -> None:
        script = Script(answering().answer, faults=0.3, seed=3)
        with serving(script) as url:
            result = ask(at_endpoint(url, attempts=20), tmp_path)
        assert responses(tmp_path) == EXPECTED
        assert (result.groups["plain"].n, result.groups["plain"].unscored) == (40, 0)
        assert all(script.kinds[fault] > 0 for fault in FAULTS)
        kept = [json.loads(line)["answer"] for line in (tmp_path / ANSWERS).read_text("ascii").splitlines()]
        assert sorted(kept) == sorted(EXPECTED)

    def test_what_stays_unanswered_stops_the_evaluation_and_is_asked_again(self, tmp_path: Path) -> None:
        first = Script(answering().answer, faults=0.5, seed=4)
        with serving(first) as url, pytest.raises(SeawallError, match=r"got no reply to \d+ of 40 prompts"):
            ask(at_endpoint(url, attempts=1), tmp_path)
        assert 0 < len(load_samples(tmp_path / SAMPLES)) < 40
        second = answering()
        with serving(second) as url:
            ask(at_endpoint(url, attempts=1), tmp_path)
        assert responses(tmp_path) == EXPECTED
        assert not set(first.answered) & set(second.attempts)
        assert max(second.attempts.values()) == 1

    def test_a_few_without_a_reply_are_unscored(self, tmp_path: Path) -> None:
        script = answering()
        script.special = {"Goal 7": HttpReply(500, b""), "Goal 9": HttpReply(503, b"")}
        judge = ByLength()
        with serving(script) as url:
            result = ask(at_endpoint(url, attempts=2), tmp_path, judge)
        rate = result.groups["plain"]
        assert (rate.n, rate.unscored) == (40, 2)
        found = {sample.goal: sample for sample in load_samples(tmp_path / SAMPLES)}
        assert found["goal 7"].label == found["goal 9"].label == "unscored"
        assert found["goal 7"].reason == f"{NO_REPLY}status 500"
        assert script.attempts["Goal 7"] == 4
        assert len(judge.given) == 38

    def test_a_request_that_is_refused_is_unscored_for_good(self, tmp_path: Path) -> None:
        script = answering()
        script.special = {"Goal 3": HttpReply(400, b"too long")}
        with serving(script) as url:
            result = ask(at_endpoint(url), tmp_path)
        assert result.groups["plain"].unscored == 1
        assert script.attempts["Goal 3"] == 1
        found = {sample.goal: sample for sample in load_samples(tmp_path / SAMPLES)}
        assert found["goal 3"].reason == f"{NO_REPLY}the endpoint refuses the request with status 400"

    def test_one_that_is_down_is_noticed_after_one_batch(self, tmp_path: Path) -> None:
        script = Script(answering().answer, always=HttpReply(503, b""))
        with serving(script) as url, pytest.raises(SeawallError, match=r"no reply to 8 of 40 prompts.*status 503"):
            ask(at_endpoint(url, attempts=2, concurrency=2), tmp_path)
        assert script.attempts.total() == 16
        assert not (tmp_path / ANSWERS).exists()

    def test_an_evaluation_that_was_ended_asks_only_for_the_rest(self, tmp_path: Path) -> None:
        script = answering()
        with serving(script) as url:
            config = at_endpoint(url, concurrency=2)
            with pytest.raises(KeyboardInterrupt):
                ask(config, tmp_path, Ending(2))
            assert len(load_samples(tmp_path / SAMPLES)) == 16
            with (tmp_path / SAMPLES).open("ab") as handle:
                handle.write(b'{"id": "plain/00')
            ask(config, tmp_path)
        assert responses(tmp_path) == EXPECTED
        assert set(script.attempts.values()) == {1}

    @pytest.mark.parametrize(("status", "says"), [(401, "eval.engine.key_env"), (404, "eval.engine.model")])
    def test_a_wrong_setting_is_an_error(self, tmp_path: Path, status: int, says: str) -> None:
        script = Script(answering().answer, always=HttpReply(status, b"{}"))
        with serving(script) as url, pytest.raises(ConfigError, match=says):
            ask(at_endpoint(url), tmp_path)
        assert not load_or_none(tmp_path)

    def test_the_key_comes_from_the_environment_and_is_kept_nowhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODEL_KEY", "a-secret")
        script = answering()
        with serving(script) as url:
            ask(at_endpoint(url, key_env="MODEL_KEY"), tmp_path)
        assert script.headers[0]["authorization"] == "Bearer a-secret"
        assert not any(b"a-secret" in path.read_bytes() for path in tmp_path.iterdir())
        monkeypatch.delenv("MODEL_KEY")
        with pytest.raises(ConfigError, match=r"MODEL_KEY of eval\.engine\.key_env"):
            make_engine(at_endpoint(url, key_env="MODEL_KEY"))

    def test_a_damaged_answer_is_named(self, tmp_path: Path) -> None:
        row = {"request": "x", "answer": "y", "problem": None, "tokens": "many"}
        (tmp_path / ANSWERS).write_text(json.dumps(row) + "\n")
        with pytest.raises(ArtifactError, match=r"answers\.jsonl:1: .*; got "):
            make_engine(at_endpoint("http://127.0.0.1:1/v1"), folder=tmp_path)


def load_or_none(folder: Path) -> bytes:
    path = folder / SAMPLES
    return path.read_bytes() if path.exists() else b""


class Ending:
    """A judge that ends the process before a given batch."""

    name = "ending"

    def __init__(self, at: int) -> None:
        self.at = at
        self.inner = ByLength()

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        if self.at == 0:
            raise KeyboardInterrupt
        self.at -= 1
        return self.inner(prompts, responses)


class TestLengths:
    CONFIG = EvalConfig(max_new_tokens=4, lengths=(2, 4, 7), bootstrap=100, gold=False, batch_size=16)

    def test_the_verdict_at_every_length_is_the_one_on_the_prefix(self, model: PreTrainedModel, tmp_path: Path) -> None:
        judge = ByLength(limit=4)
        result = evaluate(model, TOKENIZER, SUITE, self.CONFIG, judge=judge, folder=tmp_path, fingerprint="x")
        alone = {
            prompt: generate(model, TOKENIZER, [prompt], max_new_tokens=7, batch_size=1)[0]
            for _, prompt in SUITE.groups["plain"]
        }
        samples = load_samples(tmp_path / SAMPLES)
        for sample in samples:
            ids = alone[sample.prompt].token_ids
            texts = {n: str(TOKENIZER.decode(list(ids[:n]), skip_special_tokens=True)) for n in (2, 4, 7)}
            assert {cut.length: cut.response for cut in sample.cuts} == texts
            assert sample.response == texts[4]
            for cut in sample.cuts:
                assert cut.label == ("refused" if len(cut.response) <= 4 else "complied")
        for length, rate in result.lengths["plain"].items():
            labels = [next(cut.label for cut in one.cuts if cut.length == length) for one in samples]
            goals = [sample.goal for sample in samples]
            assert rate == rate_with_interval(labels, goals, target("plain"))
        assert result.lengths["plain"][4] == result.groups["plain"]
        assert known(result.lengths["plain"][2]) > known(result.lengths["plain"][7])
        assert len(judge.given) <= 3 * 40
        result.save(tmp_path)
        assert EvalResult.load(tmp_path) == result

    def test_a_short_reply_is_judged_once(self) -> None:
        judge = ByLength()
        one = EvalPrompt("plain/0000", "plain", "g", user("x"))
        found = judged_samples([(one, Reply("whole", True, 3, {2: ReplyParts("who")}))], self.CONFIG, judge)[0]
        assert judge.given == ["whole", "who"]
        assert [(cut.length, cut.response, cut.label) for cut in found.cuts] == [
            (2, "who", "refused"),
            (4, "whole", "complied"),
            (7, "whole", "complied"),
        ]

    def test_none_are_judged_unless_asked_for(self, model: PreTrainedModel, tmp_path: Path) -> None:
        config = self.CONFIG.model_copy(update={"lengths": ()})
        result = evaluate(model, TOKENIZER, SUITE, config, judge=KeywordJudge(), folder=tmp_path, fingerprint="x")
        assert result.lengths == {}
        assert '"lengths"' not in (tmp_path / SAMPLES).read_text("utf-8")

    def test_an_unknown_verdict_at_a_length_is_refused(self, model: PreTrainedModel, tmp_path: Path) -> None:
        evaluate(model, TOKENIZER, SUITE, self.CONFIG, judge=ByLength(), folder=tmp_path, fingerprint="x")
        rows = [json.loads(line) for line in (tmp_path / SAMPLES).read_text("utf-8").splitlines()]
        rows[3]["lengths"][1]["label"] = "safe"
        (tmp_path / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ArtifactError, match=r"samples\.jsonl:4: .*; got 'safe'"):
            load_samples(tmp_path / SAMPLES)

    def test_a_server_that_tells_no_tokens_is_refused(self, tmp_path: Path) -> None:
        script = answering()
        with serving(script) as url, pytest.raises(ConfigError, match=r"got no logprobs.*eval\.lengths"):
            ask(at_endpoint(url, lengths=(2, 6)), tmp_path)

    def test_a_judge_without_an_answer_is_asked_again_about_every_length(
        self, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        suite = EvalSuite({"plain": [("g", user("Goal 1"))]})
        judge = Late()
        evaluate(model, TOKENIZER, suite, self.CONFIG, judge=judge, folder=tmp_path, fingerprint="x")
        sample = load_samples(tmp_path / SAMPLES)[0]
        assert [sample.reason, *[cut.reason for cut in sample.cuts]] == ["now"] * 4
        assert sorted(set(judge.again)) == sorted({sample.response, *[cut.response for cut in sample.cuts]})


class Late:
    """A judge that answers from its second call on."""

    name = "late"

    def __init__(self) -> None:
        self.calls = 0
        self.again: list[str] = []

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        self.calls += 1
        if self.calls == 1:
            return [Verdict("unscored", f"{NO_ANSWER}busy", self.name) for _ in responses]
        self.again += responses
        return [Verdict("complied", "now", self.name) for _ in responses]
