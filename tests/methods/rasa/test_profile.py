from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from marker_model import MARKER, PLANTED, MarkerJudge, marked_pairs, planted_model
from torch import Tensor

from families import FAMILIES, tiny, tiny_tokenizer
from seawall.artifacts.profile import ExpertProfile
from seawall.config.engine import ContinuousEngine
from seawall.config.profile import ProfileConfig
from seawall.config.select import SelectConfig
from seawall.data.types import Verdict, user
from seawall.errors import NothingToRepairError
from seawall.evaluation.engines.continuous import CheckedContinuous
from seawall.methods.rasa.profiling import ProfileResult, profile
from seawall.methods.rasa.profiling.counting import Counts, count_routing
from seawall.methods.rasa.selection import select
from seawall.models.generate import Completion, generate
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

TOKENIZER = tiny_tokenizer()
CONFIG = ProfileConfig(max_new_tokens=6, batch_size=4)


def _planted() -> MoEModel:
    return find_moe(planted_model(TOKENIZER(MARKER)["input_ids"][0]))


def _profile(moe: MoEModel, scratch: Path, **options: Any) -> ProfileResult:
    settings: dict[str, Any] = {"judge": MarkerJudge(), "progress": lambda *_: None, **options}
    pairs = settings.pop("pairs", marked_pairs(5))
    config = settings.pop("config", CONFIG)
    return profile(moe, TOKENIZER, pairs, config, fingerprint="sha256:tiny", scratch=scratch, **settings)


def _tensors(found: ExpertProfile) -> dict[str, Tensor]:
    return {field.name: value for field in fields(found) if isinstance(value := getattr(found, field.name), Tensor)}


@pytest.mark.parametrize("tokens", ["generated", "prompt", "both"])
@pytest.mark.parametrize("method", ["frequency", "mass"])
def test_the_planted_expert_is_found_at_rank_one(tmp_path: Path, tokens: Any, method: Any) -> None:
    found = _profile(_planted(), tmp_path).profile
    chosen = select(found, SelectConfig(k=1, method=method, bootstrap=20), tokens=tokens)
    assert [(layer, expert) for layer, experts in enumerate(chosen.layers) for expert in experts] == [PLANTED]
    assert chosen.stability == 1.0
    assert chosen.scores_LE[PLANTED] > 0.3


@pytest.mark.parametrize("method", ["random", "frequency_matched"])
def test_a_control_does_not_find_it(tmp_path: Path, method: Any) -> None:
    found = _profile(_planted(), tmp_path).profile
    for seed in range(10):
        chosen = select(found, SelectConfig(k=1, method=method, seed=seed))
        assert PLANTED[1] not in chosen.layers[PLANTED[0]]


def test_all_attacks_use_the_planted_expert_for_every_generated_token(tmp_path: Path) -> None:
    found = _profile(_planted(), tmp_path).profile
    layer, expert = PLANTED
    torch.testing.assert_close(found.attack_counts_PLE[:, layer, expert], found.attack_tokens_P)
    assert found.anchor_counts_PLE[:, layer, expert].sum() == 0


@pytest.mark.parametrize("family", ["olmoe", "glm4_moe"])
def test_any_engine_gives_the_same_profile(tmp_path: Path, family: str) -> None:
    moe = find_moe(tiny(family))
    (tmp_path / "continuous").mkdir()
    result = _profile(moe, tmp_path).profile
    continuous = CheckedContinuous(ContinuousEngine())
    other = _profile(moe, tmp_path / "continuous", decoder=continuous).profile
    assert other.pairs == result.pairs
    tensors = _tensors(result)
    for name, value in _tensors(other).items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_takes_k_places_in_every_layer(tmp_path: Path, family: str) -> None:
    moe = find_moe(tiny(family))
    tensors = _tensors(_profile(moe, tmp_path, pairs=marked_pairs(2)).profile)
    for side in ("attack", "anchor", "attack_prompt", "anchor_prompt"):
        places_PL = tensors[f"{side}_counts_PLE"].sum(-1)
        expected_P = tensors[f"{side}_tokens_P"] * moe.top_k
        assert torch.equal(places_PL, expected_P[:, None].expand_as(places_PL))
        assert expected_P.min() > 0


def _counts(moe: MoEModel, replies: list[Completion], batch_size: int) -> tuple[Counts, Counts]:
    return count_routing(moe, replies, batch_size=batch_size)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_padding_is_not_counted(family: str) -> None:
    moe = find_moe(tiny(family))
    prompts = [user("a"), user("a longer prompt"), user("one of middle size")]
    replies = generate(moe.model, TOKENIZER, prompts, max_new_tokens=5, batch_size=3)
    for together, alone in zip(_counts(moe, replies, 3), _counts(moe, replies, 1), strict=True):
        assert torch.equal(together.tokens_P, alone.tokens_P)
        assert torch.equal(together.counts_PLE, alone.counts_PLE)
        torch.testing.assert_close(together.mass_PLE, alone.mass_PLE)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "glm4_moe", "gpt_oss"])
def test_tokens_are_routed_as_when_they_were_generated(family: str) -> None:
    moe = find_moe(tiny(family))
    seen: list[list[Tensor]] = [[] for _ in moe.layers]
    with capture(moe, sink=lambda layer, indices_TK, *_: seen[layer].append(indices_TK)):
        reply = generate(moe.model, TOKENIZER, [user("hello")], max_new_tokens=6, batch_size=1)[0]
    assert not reply.ended
    prompt, generated = _counts(moe, [replace(reply, token_ids=reply.token_ids[:-1])], 1)
    for layer, steps in enumerate(seen):
        for counts, part in ((prompt, steps[:1]), (generated, steps[1:])):
            expected_E = torch.bincount(torch.cat(part).flatten(), minlength=moe.num_experts).float()
            assert torch.equal(counts.counts_PLE[0, layer], expected_E)


def test_only_successful_jailbreaks_of_refused_requests_are_kept_and_the_others_have_a_reason(tmp_path: Path) -> None:
    judge = MarkerJudge(
        {
            "tell 0": Verdict("complied", "", "marker"),
            "tell 1": Verdict("unscored", "empty", "marker"),
            "## 2 play": Verdict("refused", "", "marker"),
            "## 3 play": Verdict("unscored", "repeats itself", "marker"),
        }
    )
    result = _profile(_planted(), tmp_path, judge=judge)
    assert [(pair.goal, pair.attack_name) for pair in result.profile.pairs] == [
        ("goal 2", "attack ###"),
        ("goal 3", "attack ###"),
        ("goal 4", "attack ##"),
        ("goal 4", "attack ###"),
    ]
    assert {(pair.goal, pair.attack_name): pair.reason for pair in result.profile.dropped} == {
        ("goal 0", "attack ##"): "plain request answered",
        ("goal 0", "attack ###"): "plain request answered",
        ("goal 1", "attack ##"): "plain reply unscored: empty",
        ("goal 1", "attack ###"): "plain reply unscored: empty",
        ("goal 2", "attack ##"): "attack refused",
        ("goal 3", "attack ##"): "attack reply unscored: repeats itself",
    }
    assert len(result.profile.attack_tokens_P) == 4
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10
    assert sum(row["dropped"] is None for row in rows) == 4
    assert rows[0]["anchor"] == [{"role": "user", "content": "tell 0"}]


@pytest.mark.parametrize(
    ("label", "side", "message"),
    [
        ("complied", "tell", "10 x plain request answered; the model does not refuse plain requests"),
        ("refused", "##", "10 x attack refused; the model withstands these attacks"),
        ("unscored", "##", "10 x attack reply unscored; look at pairs.jsonl"),
    ],
)
def test_nothing_kept_is_an_error_that_counts_the_reasons(tmp_path: Path, label: Any, side: str, message: str) -> None:
    class OneSided(MarkerJudge):
        def _one(self, text: str) -> Verdict:
            return Verdict(label, "", self.name) if text.startswith(side) else super()._one(text)

    with pytest.raises(NothingToRepairError, match=message):
        _profile(_planted(), tmp_path, judge=OneSided())
    assert (tmp_path / "pairs.jsonl").is_file()


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 2, 4])
def test_an_interrupted_profile_goes_on_and_ends_with_the_same_numbers(tmp_path: Path, killed_after: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = _profile(_planted(), tmp_path / "whole").profile
    batches = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal batches
        batches += 1
        if batches == killed_after:
            raise _KilledError

    with pytest.raises(_KilledError):
        _profile(_planted(), tmp_path / "killed", progress=progress)
    resumed = _profile(_planted(), tmp_path / "killed", progress=progress).profile
    replies = [json.loads(line) for line in (tmp_path / "killed" / "replies.jsonl").read_text().splitlines()]
    assert sorted(reply["at"] for reply in replies) == list(range(15))  # none was asked twice
    assert resumed.pairs == whole.pairs
    for name, tensor in _tensors(resumed).items():
        torch.testing.assert_close(tensor, _tensors(whole)[name], rtol=0, atol=1e-5)


def test_a_profile_is_the_same_every_time(tmp_path: Path) -> None:
    results = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        results.append(_tensors(_profile(_planted(), tmp_path / name).profile))
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())
