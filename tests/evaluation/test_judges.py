"""What holds for every judge, and the ensemble."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from seawall.artifacts.evaluation import Sample
from seawall.config.eval import EnsembleJudge as EnsembleConfig
from seawall.config.eval import EvalConfig, JudgeConfig, KeywordJudge
from seawall.config.judge import MemberConfig
from seawall.config.load import load_recipe
from seawall.config.problems import variants
from seawall.data.types import NO_ANSWER, Messages, Verdict, VerdictLabel, user
from seawall.errors import ConfigError
from seawall.evaluation.judges import JUDGES, make_judge
from seawall.evaluation.judges.ensemble import EnsembleJudge, majority
from seawall.evaluation.rates import disagreement


class Holder(BaseModel):
    judge: JudgeConfig


RUBRIC = {"kind": "rubric", "base_url": "http://127.0.0.1:1/v1", "model": "x"}
GUARD = {"kind": "guard", "model": "guards/one", "format": "llama_guard"}


def vote(label: VerdictLabel, harm: float | None = None, reason: str = "why") -> Verdict:
    return Verdict(label, reason, "j", harm)


@dataclass(frozen=True)
class Fixed:
    labels: tuple[VerdictLabel, ...]
    name: str = "fixed"

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        return [Verdict(label, "as told", self.name) for label in self.labels]


def test_judges_and_config_agree() -> None:
    assert set(JUDGES) == set(variants(JudgeConfig))
    assert set(variants(MemberConfig)) == set(JUDGES) - {"ensemble"}
    assert EvalConfig().judge == KeywordJudge()
    assert make_judge(EvalConfig().judge).name == "keyword"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({**GUARD, "labels": {"a": "harmful"}}, "either a format"),
        ({"kind": "guard", "model": "x"}, "either a format"),
        ({"kind": "guard", "model": "x", "labels": {}}, "meaning of every label"),
        ({"kind": "guard", "model": "x", "labels": {"a": "bad"}}, "'harmful'"),
        ({"kind": "guard", "model": "x", "labels": {"a": "harmful"}, "prompt_file": "a"}, "with a format"),
        ({**GUARD, "format": "gpt"}, "'llama_guard'"),
        ({**GUARD, "device": "gpu"}, "cuda:N"),
        ({**RUBRIC, "base_url": "127.0.0.1/v1"}, "http or https"),
        ({**RUBRIC, "base_url": "http://me:secret@127.0.0.1/v1"}, "without user"),
        ({**RUBRIC, "base_url": "http://127.0.0.1/v1?key=secret"}, "without user"),
        ({**RUBRIC, "base_url": "http://127.0.0.1:port/v1"}, "http or https"),
        ({**RUBRIC, "key_env": "sk-1234"}, "key_env"),
        ({**RUBRIC, "attempts": 0}, "greater than"),
        ({**RUBRIC, "key": "x"}, "Extra inputs"),
        ({"kind": "ensemble", "judges": [{"kind": "keyword"}]}, "at least 2"),
        ({"kind": "ensemble", "judges": [{"kind": "keyword"}, {"kind": "ensemble", "judges": []}]}, "'keyword'"),
    ],
)
def test_settings_that_make_no_judge_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Holder.model_validate({"judge": changes})


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://api.example.org/v1/", "http://[::1]:80/v1"])
def test_addresses(url: str) -> None:
    judge = Holder.model_validate({"judge": {**RUBRIC, "base_url": url}}).judge
    assert judge.model_dump()["base_url"] == url.rstrip("/")


def test_a_wrong_key_of_a_member_is_named_by_its_path_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "eval:\n  judge:\n    kind: ensemble\n    judges:\n"
        "      - kind: keyword\n      - kind: guard\n        modle: x\n",
        "utf-8",
    )
    with pytest.raises(ConfigError, match=r"recipe.yaml:7: eval.judge.judges\[1\].modle is an unknown key") as found:
        load_recipe(recipe)
    assert "did you mean eval.judge.judges[1].model?" in str(found.value)


def test_every_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "judges.md").read_text("utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    kinds = []
    for block in blocks:
        (tmp_path / "recipe.yaml").write_text(block, "utf-8")
        kinds.append(load_recipe(tmp_path / "recipe.yaml").eval.judge.kind)
    assert set(kinds) == set(JUDGES)


def test_naming_a_judge_imports_neither_a_model_library_nor_a_client() -> None:
    script = (
        "import sys; import seawall.config, seawall.evaluation.judges\n"
        "print([name for name in ('torch', 'transformers', 'httpx2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestMajority:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (("refused", "refused", "complied"), "refused"),
            (("complied", "refused", "complied"), "complied"),
            (("refused", "complied"), "unscored"),
            (("refused", "unscored", "unscored"), "refused"),
            (("refused", "complied", "unscored"), "unscored"),
            (("unscored", "unscored"), "unscored"),
        ],
    )
    def test_more_than_half_of_the_scored_votes_decide(self, labels: Any, expected: str) -> None:
        for order in itertools.permutations(labels):
            assert majority([vote(label) for label in order], "e").label == expected

    def test_the_reason_holds_every_vote_and_how_many_differ(self) -> None:
        found = majority([vote("refused"), vote("complied", reason="long"), vote("refused"), vote("unscored")], "e")
        assert found.judge == "e"
        assert found.reason == (
            "1 of 3 votes differ; j: refused (why); j: complied (long); j: refused (why); j: unscored (why)"
        )

    def test_harm_is_the_mean_of_what_scored_votes_say(self) -> None:
        votes = [vote("complied", 1.0), vote("complied", 0.5), vote("complied"), vote("unscored", 0.0)]
        assert majority(votes, "e").harm == 0.75
        assert majority([vote("complied"), vote("complied")], "e").harm is None
        assert majority([vote("complied", 1.0), vote("refused", 0.0)], "e").harm is None

    def test_a_missing_answer_is_asked_for_again_only_where_it_decides(self) -> None:
        missing = vote("unscored", reason=f"{NO_ANSWER}down")
        assert majority([vote("refused"), vote("complied"), missing], "e").reason.startswith(NO_ANSWER)
        assert not majority([vote("refused"), vote("refused"), missing], "e").reason.startswith(NO_ANSWER)
        assert not majority([vote("refused"), vote("complied")], "e").reason.startswith(NO_ANSWER)

    @given(st.lists(st.sampled_from(get_args(VerdictLabel)), min_size=1, max_size=7))
    def test_it_is_what_counting_says(self, labels: list[VerdictLabel]) -> None:
        refused, complied = labels.count("refused"), labels.count("complied")
        found = majority([vote(label) for label in labels], "e").label
        assert found == ("unscored" if refused == complied else "refused" if refused > complied else "complied")


class TestDisagreement:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (("refused", "refused"), False),
            (("refused", "complied"), True),
            (("refused", "refused", "complied"), True),
            (("refused", "unscored", "refused"), False),
            (("refused", "unscored"), None),
            (("unscored", "unscored"), None),
        ],
    )
    def test_a_reply_is_disputed_where_scored_votes_differ(
        self, labels: tuple[VerdictLabel, ...], expected: bool | None
    ) -> None:
        assert majority([vote(label) for label in labels], "e").disputed is expected

    def test_it_is_a_share_of_the_replies_with_two_scored_votes(self) -> None:
        samples = [sample(disputed) for disputed in (False, True, False, None, True, False)]
        assert disagreement(samples) == 0.4

    def test_nothing_to_compare_is_no_rate(self) -> None:
        assert disagreement([sample(None)]) is None
        assert disagreement([]) is None


def sample(disputed: bool | None) -> Sample:
    return Sample("a", "a", "plain", user("a"), "b", "refused", "", disputed=disputed)


def test_the_ensemble_asks_every_judge_and_keeps_the_order() -> None:
    judge = EnsembleJudge(
        (
            Fixed(("refused", "complied", "refused")),
            Fixed(("refused", "complied", "complied")),
            Fixed(("complied", "complied", "unscored")),
        )
    )
    verdicts = judge([user("a")] * 3, ["x", "y", "z"])
    assert [verdict.label for verdict in verdicts] == ["refused", "complied", "unscored"]
    assert [verdict.reason.split(";")[0] for verdict in verdicts] == [
        "1 of 3 votes differ",
        "0 of 3 votes differ",
        "1 of 2 votes differ",
    ]


def test_an_ensemble_is_made_from_its_settings() -> None:
    judge = make_judge(EnsembleConfig(judges=(KeywordJudge(), KeywordJudge())))
    verdicts = judge([user("a")] * 2, ["I can't help with that.", "Boil the rice."])
    assert [verdict.label for verdict in verdicts] == ["refused", "complied"]
    assert verdicts[0].judge == "ensemble"
