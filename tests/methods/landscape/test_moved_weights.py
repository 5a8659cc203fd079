"""Weights moved along directions: where they arrive, that they come back to the last bit, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import seawall.methods.landscape.moved as landscape
from checkpoint_pairs import write, write_pair
from checkpoints import edit_json, logits
from families import NUM_EXPERTS, tiny
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, Interrupted, SeawallError, UnsupportedModelError
from seawall.methods.landscape.directions import (
    adapter_direction,
    aligned_direction,
    random_direction,
    tuned_direction,
)
from seawall.methods.landscape.moved import MovedWeights
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.stream import WeightReader, outline
from seawall.models.lora.merge import CONFIG, WEIGHTS, merge_adapter

LAYOUTS = ("llama", "mixtral", "gpt_oss")
"""Dense; experts apart on disk; transposed stacks."""


class Pair(NamedTuple):
    aligned: Path
    base: Path
    changes: dict[str, Tensor]
    """V of every matrix, as (..., rows, columns)."""


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(*write_pair(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(*write_pair(tmp_path_factory.mktemp("mixtral"), "mixtral"))


def _load(folder: Path, **settings: Any) -> PreTrainedModel:
    return load_model(ModelConfig(id=str(folder), device="cpu", **settings))[0]


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_base_lies_at_minus_one_and_every_bit_comes_back(pair: Pair) -> None:
    aligned = outline(pair.aligned)
    direction = aligned_direction(aligned, outline(pair.base))
    model, base = _load(pair.aligned), _load(pair.base)
    assert direction.source == model_fingerprint(base)
    assert direction.tensors == len(pair.changes)
    assert direction.norm == pytest.approx(sum(float(V.square().sum()) for V in pair.changes.values()) ** 0.5, rel=1e-4)
    before, own = model_fingerprint(model), _state(model)
    moved = MovedWeights(model, aligned, [direction])
    with moved.at({"aligned": -1.0}):
        torch.testing.assert_close(_state(model), _state(base), rtol=0, atol=2e-7)
        torch.testing.assert_close(logits(model), logits(base), rtol=1e-3, atol=1e-3)
    assert model_fingerprint(model) == before
    with moved.at({"aligned": 0.5}):
        for name, there in base.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], own[name] + 0.5 * (own[name] - there))
    with moved.at({"aligned": 0.0}):
        assert model_fingerprint(model) == before
    assert model_fingerprint(model) == before


def test_what_an_adapter_adds_lies_at_one(pair: Pair, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    stacks = [] if "llama" in str(pair.aligned) else ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    folder = _adapter(peft, _load(pair.aligned), tmp_path / "adapter", stacks)
    aligned = outline(pair.aligned)
    direction = adapter_direction(aligned, folder)
    model, merged = _load(pair.aligned), merge_adapter(_load(pair.aligned), folder)
    before = model_fingerprint(model)
    with MovedWeights(model, aligned, [direction]).at({"tuned": 1.0}):
        torch.testing.assert_close(_state(model), _state(merged), rtol=0, atol=1e-6)
        assert model_fingerprint(model) != before
    assert model_fingerprint(model) == before
    change = [(merged.state_dict()[name] - one).square().sum() for name, one in model.state_dict().items()]
    assert direction.norm == pytest.approx(float(torch.stack(change).sum().sqrt()), rel=1e-4)


def test_an_adapter_that_is_scaled_otherwise_is_another_direction(mixtral: Pair, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = _adapter(peft, _load(mixtral.aligned), tmp_path / "adapter", [])
    aligned = outline(mixtral.aligned)
    first, again = adapter_direction(aligned, folder), adapter_direction(aligned, folder)
    edit_json(folder / CONFIG, lora_alpha=24)
    scaled = adapter_direction(aligned, folder)
    assert scaled.norm == pytest.approx(2 * first.norm)
    assert first.source == again.source != scaled.source


def _adapter(peft: Any, model: PreTrainedModel, folder: Path, stacks: list[str], **settings: Any) -> Path:
    torch.manual_seed(3)
    chosen = {"target_modules": ["q_proj", "v_proj"], "target_parameters": stacks, "init_lora_weights": False}
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, **chosen, **settings))
    adapted.save_pretrained(str(folder))
    return folder


def test_a_random_direction_is_as_long_in_every_matrix_and_expert(pair: Pair) -> None:
    aligned = outline(pair.aligned)
    along = aligned_direction(aligned, outline(pair.base))
    drawn = [random_direction(along, seed, name=f"random-{seed}") for seed in (1, 2)]
    model = _load(pair.aligned)
    own, states = _state(model), []
    for one in (drawn[0], random_direction(along, 1, name="random-1"), drawn[1]):
        with MovedWeights(model, aligned, [one]).at({one.name: -2.0}):
            states.append(_state(model))
    for name, before in own.items():
        steps = [state[name] - before for state in states]
        if name not in pair.changes:
            assert not steps[0].any(), name
            continue
        V = pair.changes[name]
        wanted = V.square().sum((-2, -1)).sqrt()
        assert wanted.shape == ((NUM_EXPERTS,) if "experts" in name else ())
        torch.testing.assert_close(steps[0].square().sum((-2, -1)).sqrt(), 2 * wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(steps[0], steps[1])
        cosine = torch.nn.functional.cosine_similarity(steps[0].flatten(), steps[2].flatten(), dim=0)
        assert abs(float(cosine)) < 5 / V.numel() ** 0.5


def test_two_directions_add_up_in_bfloat16(mixtral: Pair, tmp_path: Path) -> None:
    base = _load(mixtral.base)
    with torch.no_grad():
        base.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(2.0)
        base.get_parameter("model.layers.2.mlp.experts.down_proj")[3].add_(1.0)
        base.get_parameter("model.norm.weight").add_(0.5)
    tuned = write(tmp_path / "tuned", base)
    aligned = outline(mixtral.aligned)
    along, fine = aligned_direction(aligned, outline(mixtral.base)), tuned_direction(aligned, outline(tuned))
    assert fine.source == model_fingerprint(base)
    model = _load(mixtral.aligned, dtype="bfloat16")
    before = model_fingerprint(model)
    moved = MovedWeights(model, aligned, [along, fine])
    whole, start, there = (_load(folder) for folder in (mixtral.aligned, mixtral.base, tuned))
    with moved.at({"aligned": -0.25, "tuned": 0.5}):
        for name, tensor in model.state_dict().items():
            own, other, last = (side.state_dict()[name] for side in (whole, start, there))
            wanted = own - 0.25 * (own - other) + 0.5 * (last - own)
            torch.testing.assert_close(tensor.float(), wanted, rtol=2**-8, atol=1e-6)
        assert model_fingerprint(model) != before
    assert model_fingerprint(model) == before


@pytest.mark.parametrize("error", [ValueError, Interrupted, KeyboardInterrupt])
def test_the_weights_come_back_after_an_error_inside(mixtral: Pair, error: type[BaseException]) -> None:
    model, moved = _movable(mixtral)
    before = model_fingerprint(model)

    def fail() -> None:
        with moved.at({"aligned": 3.0}):
            assert model_fingerprint(model) != before
            raise error

    with pytest.raises(error):
        fail()
    assert model_fingerprint(model) == before


def test_the_weights_come_back_when_they_are_moved_in_part(mixtral: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = _movable(mixtral)
    before, seen = model_fingerprint(model), list[str]()
    copy = MovedWeights._copy

    def failing(self: MovedWeights, *arguments: Any) -> None:
        if len(seen) == 20:
            seen.append(model_fingerprint(model))
            raise Interrupted
        copy(self, *arguments)
        seen.append("")

    monkeypatch.setattr(landscape.MovedWeights, "_copy", failing)
    with pytest.raises(Interrupted), moved.at({"aligned": 3.0}):
        raise AssertionError("it was entered")
    assert seen[20] != before
    assert model_fingerprint(model) == before


def _movable(pair: Pair) -> tuple[PreTrainedModel, MovedWeights]:
    model, aligned = _load(pair.aligned), outline(pair.aligned)
    return model, MovedWeights(model, aligned, [aligned_direction(aligned, outline(pair.base))])


def test_only_what_a_direction_changes_is_read(mixtral: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = _load(mixtral.aligned)
    with torch.no_grad():
        base.get_parameter("model.layers.1.mlp.experts.gate_up_proj")[5, 0, 0] += 1.0
    aligned = outline(mixtral.aligned)
    direction = aligned_direction(aligned, outline(write(tmp_path / "base", base)))
    moved = MovedWeights(_load(mixtral.aligned), aligned, [direction])
    read, parts = WeightReader.read, set()

    def counting(self: WeightReader, part: Any) -> dict[str, Tensor]:
        parts.add(part)
        return read(self, part)

    monkeypatch.setattr(WeightReader, "read", counting)
    with moved.at({"aligned": 1.0}):
        pass
    assert parts == {("model.layers.1.mlp.experts.gate_up_proj", 5)}
    assert direction.norm == pytest.approx(1.0)


def test_a_model_with_other_weights_is_refused(mixtral: Pair) -> None:
    aligned = outline(mixtral.aligned)
    direction = aligned_direction(aligned, outline(mixtral.base))
    with pytest.raises(ArtifactError, match=r"does not hold the weights of .*; got other numbers in model\."):
        MovedWeights(_load(mixtral.base), aligned, [direction])


def _other_family(folder: Path) -> PreTrainedModel:
    return tiny("olmoe")


def _wider(folder: Path) -> PreTrainedModel:
    return tiny("mixtral", hidden_size=64)


def _same(folder: Path) -> PreTrainedModel:
    return _load(folder)


def _broken(folder: Path) -> PreTrainedModel:
    model = _load(folder)
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.q_proj.weight")[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("made", "saying"),
    [
        (_other_family, r"the model_type .* differs; got olmoe; expected mixtral as in"),
        (_wider, r"lm_head.weight differs; got \(272, 64\); expected \(272, 32\)"),
        (_same, r"the two checkpoints hold the same weights; .*expected the model and another version of it"),
        (_broken, r"weights model.layers.0.self_attn.q_proj.weight are not finite"),
    ],
)
def test_what_gives_no_direction_is_one_line(
    mixtral: Pair, tmp_path: Path, made: Callable[[Path], PreTrainedModel], saying: str
) -> None:
    other = write(tmp_path / "other", made(mixtral.aligned))
    for direction in (aligned_direction, tuned_direction):
        with pytest.raises(ArtifactError, match=saying) as caught:
            direction(outline(mixtral.aligned), outline(other))
        assert "\n" not in str(caught.value)


def test_adapters_that_are_no_direction_are_refused(mixtral: Pair, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    aligned = outline(mixtral.aligned)

    def refused(folder: Path, error: type[SeawallError], saying: str) -> None:
        with pytest.raises(error, match=saying) as caught:
            adapter_direction(aligned, folder)
        assert "\n" not in str(caught.value)

    wide = _adapter(peft, tiny("mixtral", hidden_size=64), tmp_path / "wide", [])
    saying = (
        r"wide is for a model of other shapes; got model\.layers\.0\..*lora_A\.weight of \(4, 64\); expected \(4, 32\)"
    )
    refused(wide, ArtifactError, saying)
    dora = _adapter(peft, _load(mixtral.aligned), tmp_path / "dora", [], use_dora=True)
    refused(dora, UnsupportedModelError, "got DoRA; expected")
    whole = _adapter(peft, _load(mixtral.aligned), tmp_path / "whole", [], modules_to_save=["lm_head"])
    refused(whole, UnsupportedModelError, "got modules_to_save lm_head; expected plain LoRA of")
    good = _adapter(peft, _load(mixtral.aligned), tmp_path / "good", [])
    adapter_direction(aligned, good)
    zero = _adapter(peft, _load(mixtral.aligned), tmp_path / "zero", [])
    weights = load_file(zero / WEIGHTS)
    save_file({name: one * ("lora_A" in name) for name, one in weights.items()}, zero / WEIGHTS)
    refused(zero, ArtifactError, "got zero updates; expected a trained adapter")
    save_file({name: one * float("nan") for name, one in weights.items()}, zero / WEIGHTS)
    refused(zero, ArtifactError, "got updates that are not finite")
    edit_json(good / CONFIG, bias="all")
    refused(good, UnsupportedModelError, "got biases; expected plain LoRA")
    edit_json(good / CONFIG, bias="none", target_modules=["q_proj"])
    refused(
        good,
        ArtifactError,
        "got 0 tensors missing, 6 unexpected, "
        r"model\.layers\.0\.self_attn\.v_proj\.lora_A\.weight first; expected .* 6 tensors .* of q_proj",
    )
    assert json.loads((good / CONFIG).read_text())["r"] == 4


@pytest.mark.parametrize(
    ("settings", "experts", "saying"),
    [
        (
            {"r": 8},
            8,
            r"another rank .*; got .*q_proj\.lora_A.* of \(4, 32\); expected \(8, 32\)",
        ),
        (
            {"target_modules": ["c_attn"]},
            8,
            r"does not fit the model; got .*c_attn.*; expected layers of this model: .*q_proj",
        ),
        (
            {},
            4,
            r"another rank than .*; got .*experts\.lora_A.* of \(16, 16\); expected \(32, 16\); .* number of experts",
        ),
    ],
    ids=["rank", "modules", "experts"],
)
def test_an_adapter_of_another_rank_or_of_other_modules_is_one_line_both_ways(
    mixtral: Pair, tmp_path: Path, settings: dict[str, Any], experts: int, saying: str
) -> None:
    peft = pytest.importorskip("peft")
    stacks = ["mlp.experts.down_proj"] if experts != NUM_EXPERTS else []
    folder = _adapter(peft, tiny("mixtral", num_local_experts=experts), tmp_path / "adapter", stacks)
    edit_json(folder / CONFIG, **settings)
    for use in (
        lambda: adapter_direction(outline(mixtral.aligned), folder),
        lambda: merge_adapter(_load(mixtral.aligned), folder),
    ):
        with pytest.raises(SeawallError, match=saying) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("; got ") == str(caught.value).count("; expected ") == 1
        assert str(caught.value).count("; ") == 3  # got, expected and a remedy


def test_in_bfloat16_a_small_move_is_hardly_made_and_the_share_is_told(tmp_path: Path) -> None:
    folders = []
    for name, sign in (("aligned", 1.0), ("base", 0.0)):
        model = tiny("llama").to(torch.bfloat16)
        weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
        change = 0.01 * sign * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.data = (weight.data.float() + change).to(torch.bfloat16)
        folders.append(write(tmp_path / name, model))
    aligned = outline(folders[0])
    direction = aligned_direction(aligned, outline(folders[1]))
    rough = MovedWeights(_load(folders[0]), aligned, [direction])
    exact = MovedWeights(_load(folders[0], dtype="float32"), aligned, [direction])
    small, large = (rough.realised({"aligned": amount}) for amount in (0.02, 20.0))
    assert small < 0.5
    assert large == pytest.approx(1.0, abs=0.01)
    assert rough.realised({}) == exact.realised({"aligned": 0.02}) == 1.0
    own, base = (_load(folder, dtype="float32").state_dict() for folder in folders)
    with rough.at({"aligned": 0.02}):
        along = total = 0.0
        for name, weight in rough._state.items():
            intended = 0.02 * (own[name] - base[name])
            along += float(((weight.float() - own[name]) * intended).sum())
            total += float(intended.square().sum())
    assert along / total == pytest.approx(small, abs=1e-3)
