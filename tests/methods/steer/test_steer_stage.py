"""`seawall steer` on models whose refusal lies in a known place: what is found, kept, shown, loaded and refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import seawall
from families import tiny
from planted_refusal import EXPERT, harmful, harmless, refusing_by_attention, refusing_by_expert, refusing_tokenizer
from refusing_recipe import write_refusing
from seawall.artifacts.directions import Directions
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.steering import SteeringResult
from seawall.config import load_recipe
from seawall.data.splits import hash_fraction
from seawall.data.templating import encode_prompt
from seawall.errors import ConfigError, DataError, Interrupted, RunFolderError, SeawallError
from seawall.evaluation.rates import group_rates
from seawall.evaluation.samples import load_samples
from seawall.jobs.steer import steer_recipe, steer_run
from seawall.methods.steer.choose import choose_layer
from seawall.methods.steer.view import steering_table, steering_view
from seawall.models.generate import generate
from seawall.models.hidden.intervene import Addition, added
from seawall.runs.files import file_hash, read_json
from seawall.runs.progress import Quiet

GENERATE = "seawall.evaluation.engines.transformers.generate"
SMALL: dict[str, Any] = {"positions": [-1], "train_prompts": 16, "validation_prompts": 8, "test_prompts": 15}


@pytest.fixture(scope="module")
def by_expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refusing(tmp_path_factory.mktemp("expert"), refusing_by_expert(), **SMALL)


@pytest.fixture(scope="module")
def by_attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hardened = {"mode": "induce", "experts": False, "harden": {"coefficients": [0.01, 0.25, 1.0], "goals": 6}}
    return write_refusing(tmp_path_factory.mktemp("attention"), refusing_by_attention(), **SMALL, **hardened)


def _steer(path: Path, folder: Path, *changes: str) -> SteeringResult:
    return steer_recipe(load_recipe(path, changes), folder, text=path.read_text(), reporter=Quiet())


@pytest.fixture(scope="module")
def suppressed(by_expert: Path) -> Path:
    folder = by_expert.parent / "run"
    _steer(by_expert, folder)
    return folder


@pytest.fixture(scope="module")
def induced(by_attention: Path) -> Path:
    folder = by_attention.parent / "run"
    _steer(by_attention, folder)
    return folder


@pytest.fixture(scope="module")
def of_attention(by_attention: Path) -> Path:
    folder = by_attention.parent / "suppressed"
    _steer(by_attention, folder, "steer.mode=suppress")
    return folder


def test_the_expert_that_writes_refusals_is_found(suppressed: Path) -> None:
    found = SteeringResult.load(suppressed / "steer")
    chosen = found.choice("expert")
    assert chosen is not None
    assert chosen.experts == (EXPERT,)
    judged = {one.experts[0] for one in found.of_family("expert") if one.judged}
    assert Directions.load(suppressed / "steer").difference(EXPERT) >= 0.07
    assert judged >= {EXPERT}
    layer, constrained = found.choice("layer"), found.choice("expert_constrained")
    assert layer is not None
    assert constrained is not None
    assert (constrained.layer, constrained.position) == (layer.layer, layer.position)
    assert found.condition("original").rates["plain"].rate == 1.0
    assert found.condition("expert").rates["plain"].rate == 0.0
    assert found.condition("expert").rates["benign"].rate == 1.0
    assert found.condition("random-direction-1").rates["plain"].rate == 1.0
    moved = found.change("expert", "original", "plain")
    assert moved is not None
    assert moved.difference == -1.0
    assert "(MoE layer 2, expert 5) recovers" in found.claim
    assert "The best expert below the routing threshold, after the same search, recovers 0 " in found.claim
    assert "Refusal rests more on the MLP or MoE than on attention here." in found.claim


def test_what_is_reported_is_of_held_out_prompts_alone(suppressed: Path) -> None:
    found, directions = SteeringResult.load(suppressed / "steer"), Directions.load(suppressed / "steer")
    used = {one.prompt for one in directions.prompts}
    assert len(used) == 32
    names = {path.stem for path in (suppressed / "steer/samples").iterdir()}
    assert names == {one.name for one in found.conditions}
    for one in found.conditions:
        samples = load_samples(suppressed / f"steer/samples/{one.name}.jsonl")
        assert not used & {sample.goal for sample in samples}
        assert len(samples) == (45 if "benign" in one.rates else 15)
        rates = group_rates(samples)
        assert {group: rate.rate for group, rate in rates.items()} == {g: r.rate for g, r in one.rates.items()}
        assert (one.harmless_kl is None) == (one.name == "original")


def test_no_model_is_written_and_the_page_has_the_numbers(suppressed: Path) -> None:
    assert sorted(path.name for path in suppressed.rglob("*.safetensors")) == ["directions.safetensors"]
    assert not (suppressed / "steer/hardening").exists()
    assert not (suppressed / "steer/search").exists()
    found = SteeringResult.load(suppressed / "steer")
    page = (suppressed / "steering.html").read_text(encoding="utf-8")
    assert found.claim.replace("'", "&#39;") in page
    for one in found.conditions:
        if one.rates["plain"].rate is not None:  # a random vector may leave nothing to score
            assert f'value="{one.rates["plain"].rate}"' in page
    for words in ("one expert, free to choose its place", "78%", "54%", "direction of a layer", "Spearman"):
        assert words in page
    assert "one expert, free" in [cell for column in steering_table(found).columns for cell in column.cells]


def test_the_view_is_what_was_measured(suppressed: Path) -> None:
    found, directions = SteeringResult.load(suppressed / "steer"), Directions.load(suppressed / "steer")
    view = steering_view(found, directions, None)
    chosen = found.choice("layer")
    assert chosen is not None
    assert view.grid.chosen == (chosen.layer, 0)
    assert chosen.refusal_score is not None
    effect = chosen.refusal_score - found.figures["original_score"].value
    assert view.grid.values_NP[chosen.layer][0] == pytest.approx(effect)
    assert view.routing is not None
    (best,) = [one for one in view.routing.points if one.chosen]
    assert best.label == "MoE layer 2, expert 5"
    assert best.x == pytest.approx(100 * directions.difference(EXPERT))
    assert best.y == min(one.y for one in view.routing.points)
    assert "times fewer decoder-layer passes" in dict(view.facts)["search for experts"]


def test_what_is_done_is_skipped_and_other_settings_set_it_aside(by_expert: Path, suppressed: Path) -> None:
    before = file_hash(suppressed / "steer/steering.json")
    mark = (suppressed / "steer/DONE").stat().st_mtime_ns
    steer_run(suppressed, (), reporter=Quiet())
    assert (suppressed / "steer/DONE").stat().st_mtime_ns == mark
    copied = shutil.copytree(suppressed, suppressed.parent / "other")
    found = steer_run(copied, ["steer.experts=false", "steer.test_prompts=4"], reporter=Quiet())
    assert file_hash(copied / "steer.old-1/steering.json") == before
    assert not found.of_family("expert")
    assert "There is no direction of an expert" in found.claim
    assert found.condition("layer").rates["plain"].n == 4
    assert "Does routing say" not in (copied / "steering.html").read_text()


def test_an_interrupted_one_goes_on_and_finds_the_same(
    by_attention: Path, of_attention: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 3:
            raise Interrupted
        return generate(*args, **kwargs)

    monkeypatch.setattr(GENERATE, interrupted)
    with pytest.raises(Interrupted):
        _steer(by_attention, tmp_path / "run", "steer.mode=suppress")
    assert not (tmp_path / "run/steer").exists()

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("extracted or searched again")

    monkeypatch.setattr("seawall.methods.steer.selection.extract", forbidden)
    monkeypatch.setattr("seawall.methods.steer.selection.choose_layer", forbidden)
    monkeypatch.setattr("seawall.methods.steer.held_out.harmless_kl", forbidden)
    found = _steer(by_attention, tmp_path / "run", "steer.mode=suppress")
    assert found == SteeringResult.load(of_attention / "steer")
    assert len(calls) == len(found.conditions) + 1


def test_a_hardened_model_refuses_attacks_and_answers_the_rest(induced: Path) -> None:
    found, held = SteeringResult.load(induced / "steer"), Hardening.load(induced / "steer/hardening")
    assert held.coefficient == 0.25
    assert held.effects["attack:story"].before.rate == 1.0
    assert held.effects["attack:story"].after.rate == 0.0
    assert held.effects["borderline"].after.rate == found.condition("layer").rates["borderline"].rate == 0.0
    assert held.effects["benign"].after.rate == 1.0
    tried = [one.coefficient for one in found.of_family("layer") if one.judged]
    assert sorted(tried) == [0.01, 0.25, 1.0]
    # The numbers of the selection stay with the multiple that they were taken at.
    numbers = {one.coefficient: one for one in found.of_family("layer") if one.judged}
    assert (numbers[0.25].refusal_score, numbers[0.25].harmless_kl, numbers[0.25].prompts) == (None, None, 0)
    assert None not in (numbers[1.0].refusal_score, numbers[1.0].harmless_kl, numbers[1.0].induced_score)
    view = steering_view(found, Directions.load(induced / "steer"), held)
    assert "over-refusal" not in dict(view.facts)["dropped"]
    (mark,) = [one for one in view.side_effect.points if one.chosen]
    assert mark.label == f"decoder layer {held.layer}, token \u22121, ablated"
    assert "moved attack success by \u2212100" in found.claim
    page = (induced / "steering.html").read_text()
    assert "steer/hardening holds this direction times 0.25" in page
    assert "over-refusal from 0.0% to 0.0%" in page


def test_the_hardening_is_loaded_as_it_was_measured(induced: Path) -> None:
    folder = induced.parent / "model"
    model, tokenizer = seawall.load(str(folder), steering=induced / "steer/hardening", device="cpu")
    samples = load_samples(induced / "steer/samples/layer.jsonl")
    replies = generate(model, tokenizer, [one.prompt for one in samples], max_new_tokens=3, batch_size=32)
    assert [reply.answer for reply in replies] == [one.response for one in samples]
    held = Hardening.load(induced / "steer/hardening")
    plain, _ = seawall.load(str(folder), device="cpu")
    ids = torch.tensor([tokenizer(harmful(1)[0][-1].content)["input_ids"]])
    addition = Addition(held.layer, held.vector_D, held.coefficient)
    with torch.no_grad(), added(plain, [addition]):
        measured = plain(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, measured)


def test_a_hardening_that_stops_no_attack_is_not_left(by_attention: Path, tmp_path: Path) -> None:
    found = _steer(by_attention, tmp_path / "run", "steer.harden.coefficients=[0.001]")
    assert not (tmp_path / "run/steer/hardening").exists()
    assert "No hardening is written: attacks are refused no more often" in found.claim


def test_attention_is_named_where_it_writes_the_refusals(of_attention: Path) -> None:
    found = SteeringResult.load(of_attention / "steer")
    assert "Refusal rests more on attention than on the MLP or MoE here." in found.claim


def test_conditions_are_asked_again_under_a_system_prompt(by_attention: Path, tmp_path: Path) -> None:
    changes = ["steer.mode=suppress", "steer.system_prompt='Be safe.'", "steer.test_prompts=4"]
    found = _steer(by_attention, tmp_path / "run", *changes)
    assert {"system", "system-layer"} <= {one.name for one in found.conditions}
    samples = load_samples(tmp_path / "run/steer/samples/system-layer.jsonl")
    assert all((one.prompt[0].role, one.prompt[0].content) == ("system", "Be safe.") for one in samples)
    assert found.change("system-layer", "system", "plain") is not None
    assert "safety prompt: direction of a layer" in (tmp_path / "run/steering.html").read_text()


def test_a_cap_that_no_direction_keeps_to_is_raised_and_named(by_attention: Path, tmp_path: Path) -> None:
    changes = ["steer.mode=suppress", "steer.layer_max_kl=1.0e-7", "steer.test_prompts=4"]
    found = _steer(by_attention, tmp_path / "run", *changes)
    cap, layer = found.figures["layer_cap"].value, found.choice("layer")
    assert layer is not None
    assert layer.harmless_kl is not None
    assert 1e-7 < cap / 2 < layer.harmless_kl <= cap
    assert f"so the cap was doubled until one did, at {cap:g}" in found.claim


def test_a_cap_that_is_not_what_directions_fail_by_is_left(by_attention: Path, tmp_path: Path) -> None:
    changes, caps = ["steer.mode=suppress", "steer.drop_last_layers=0.99"], list[float]()

    def seen(evaluator: Any, limits: Any, found: Any) -> Any:
        caps.append(limits.max_kl)
        return choose_layer(evaluator, limits, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seawall.methods.steer.selection.choose_layer", seen)
        with pytest.raises(DataError, match=r"no direction of a layer passes the checks; got .* among the last layers"):
            _steer(by_attention, tmp_path / "run", *changes)
    assert len(caps) == 1


def test_a_dense_model_is_steered_by_its_layers(by_expert: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama", hidden_size=64, num_hidden_layers=4), refusing_tokenizer()
    sides = [[encode_prompt(tokenizer, one) for one in side] for side in (harmful(20), harmless(20))]
    with torch.no_grad():
        mass = [
            torch.stack([model(torch.tensor([ids])).logits[0, -1].softmax(-1) for ids in side]).mean(0)
            for side in sides
        ]
    tokens = (mass[0] - mass[1]).topk(80).indices.tolist()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = [f"model.id={folder}", f"steer.refusal_tokens={tokens}", "steer.layer_max_kl=100.0"]
    changes += ["steer.drop_last_layers=0.0", "steer.layer_coefficient=5.0"]
    found = _steer(by_expert, tmp_path / "run", *changes)
    assert {one.family for one in found.candidates} == {"layer"}
    assert {"layer", "ablated-attention", "ablated-mlp"} <= {one.name for one in found.conditions}
    view = steering_view(found, Directions.load(tmp_path / "run/steer"), None)
    assert "expert" not in found.claim + view.question
    assert not any("expert" in row.label for row in view.shares)


@pytest.mark.parametrize(
    ("changes", "spoil", "error", "saying"),
    [
        (
            ["steer.positions=[-400]"],
            None,
            DataError,
            r"a position lies outside the templated prompt; got .* -400",
        ),
        (
            ["data.attack_file=null", "data.attacks_seen=[role_play]"],
            "harmful",
            DataError,
            r"the model refuses no plain harmful prompt.*got 0 refusals of 16",
        ),
        (
            ["steer.layer_max_kl=1.0e-9", "steer.layer_kl_ceiling=1.0e-8"],
            None,
            DataError,
            r"no direction of a layer passes the checks; got .*KL",
        ),
        (
            ["steer.refusal_tokens=[99999]"],
            None,
            ConfigError,
            r"refusal tokens cannot be scored; got token 99999",
        ),
        (
            ["eval.engine.kind=endpoint", "eval.engine.base_url=http://localhost:1/v1", "eval.engine.model=x"],
            None,
            ConfigError,
            r"a model behind an endpoint cannot be steered",
        ),
        ([], "benign", SeawallError, r"benign\.jsonl"),
    ],
    ids=["position", "no refusals", "no layer", "token", "endpoint", "one-sided"],
)
def test_what_cannot_be_steered_is_one_line(
    by_expert: Path, tmp_path: Path, changes: list[str], spoil: str | None, error: type[SeawallError], saying: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(by_expert.parent, data, ignore=shutil.ignore_patterns("run", "other", "suppressed", "model"))
    if spoil is not None:
        changes = [*changes, f"data.{spoil}.path={data / f'{spoil}.jsonl'}"]
        rows = [json.loads(line) for line in (data / f"{spoil}.jsonl").read_text().splitlines()]
        kept = [] if spoil == "benign" else [{**row, "prompt": row["prompt"].lstrip("#%")} for row in rows]
        (data / f"{spoil}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(error, match=saying) as caught:
        _steer(by_expert, tmp_path / "run", *changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/steer").exists()
    assert not (tmp_path / "run/steering.html").exists()


def test_sides_without_held_out_prompts_are_met_before_the_search(by_expert: Path, tmp_path: Path) -> None:
    for name, said in (("benign", "harmless"), ("harmful", "plain harmful")):
        rows = [json.loads(line) for line in (by_expert.parent / f"{name}.jsonl").read_text().splitlines()]
        rows = [{"prompt": row["prompt"]} for row in rows if hash_fraction(row["prompt"], "split") < 0.7]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes = [f"data.{name}.path={tmp_path / f'{name}.jsonl'}"]
        changes += ["data.attack_file=null", "data.attacks_seen=[role_play]"] if name == "harmful" else []
        with pytest.raises(DataError, match=rf"no held-out {said} prompts.*empty test split of data\.{name}") as caught:
            _steer(by_expert, tmp_path / name, *changes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / name / "steer.partial/directions.json").exists()


def test_wrong_runs_and_settings_are_refused(suppressed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set eval\.seed=1: .*expected settings of `steer` alone"):
        steer_run(suppressed, ["eval.seed=1"], reporter=Quiet())
    with pytest.raises(RunFolderError, match="is no run folder"):
        steer_run(tmp_path, (), reporter=Quiet())
    assert not list(tmp_path.iterdir())


def test_a_repaired_run_is_steered_and_compared(planted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    (run / "steering.html").write_text("of a time before the repair")
    quick = ["experts=false", "mode=induce", "layer_max_kl=50.0", "drop_last_layers=0.0", "positions=[-1]",
             "system_prompt=null", "harden.coefficients=[1.0]", "harden.goals=4"]  # fmt: skip
    found = steer_run(run, [f"steer.{one}" for one in quick], reporter=Quiet())
    assert found.model_fingerprint == read_json(run / "manifest.json")["model"]["weights"]
    rates = {one.name: one.rates["attack:story"].rate for one in found.conditions}
    summary = read_json(run / "summary.json")["attacks"]["story"]
    assert rates["original"] == summary["before"]["rate"]
    assert rates["repaired"] == summary["after"]["rate"] < rates["original"]
    assert found.change("repaired", "layer", "attack") is not None
    assert "The run's repair moved attack success by" in found.claim
    page = (run / "report.html").read_text(encoding="utf-8")
    assert re.search(r'<section id="steering".*?repaired model.*?</section>', page, re.DOTALL)
    assert not (run / "steering.html").exists()
