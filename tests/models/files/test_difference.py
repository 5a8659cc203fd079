"""Planted changes are found, each where it was made, in every family's own layout on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import seawall.models.files.difference as module
from checkpoints import WEIGHTS, edit_json, write_checkpoint
from families import FAMILIES, NUM_EXPERTS, UNUSUAL, tiny
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.models.files.difference import CheckpointDifference, compare_checkpoints
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.routers import router_parameters

LAYER, EXPERT = 1, 5


def saved(folder: Path, family: str, change: Callable[[MoEModel], None] | None = None, **options: str) -> Path:
    model: PreTrainedModel = tiny(family)
    if change is not None:
        with torch.no_grad():
            change(find_moe(model))
    model.save_pretrained(folder, **options)
    return folder


def nothing_changed(found: CheckpointDifference) -> bool:
    return not found.others and all(not layer.experts and layer.router is None for layer in found.layers)


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_the_changed_expert_router_and_other_tensor_are_found(tmp_path: Path, family: str) -> None:
    sizes: list[Tensor] = []

    def change(moe: MoEModel) -> None:
        layer = moe.layers[LAYER]
        for weight in layer.weights:
            sizes.append(layer.parameter(weight)[EXPERT].clone().flatten())
            layer.parameter(weight)[EXPERT] *= 1.25
        name, router = list(router_parameters(moe).items())[-1]
        assert name.startswith(moe.layers[-1].router_name)
        router.add_(0.5)
        moe.model.get_input_embeddings().weight[3] = 7.0

    found = compare_checkpoints(saved(tmp_path / "a", family), saved(tmp_path / "b", family, change))
    assert [layer.layer for layer in found.layers] == [0, 1, 2]
    assert [list(layer.experts) for layer in found.layers] == [[], [EXPERT], []]
    assert found.layers[LAYER].experts[EXPERT] == pytest.approx(0.25, rel=1e-3)
    assert [layer.router is not None for layer in found.layers] == [False, False, True]
    assert len(found.others) == 1
    assert "embed" in next(iter(found.others))
    assert (found.num_experts, found.only_a, found.only_b) == (NUM_EXPERTS, (), ())


def test_decoder_layers_count_the_dense_ones(tmp_path: Path) -> None:
    found = compare_checkpoints(saved(tmp_path / "a", "glm4_moe"), saved(tmp_path / "b", "glm4_moe"))
    assert [(layer.layer, layer.decoder_layer) for layer in found.layers] == [(0, 1), (1, 2), (2, 3)]
    assert nothing_changed(found)


def test_a_change_is_relative_to_the_whole_expert(tmp_path: Path) -> None:
    def change(moe: MoEModel) -> None:
        moe.layers[0].parameter("down_proj")[0, 0, 0] += 2.0

    a, b = saved(tmp_path / "a", "mixtral"), saved(tmp_path / "b", "mixtral", change)
    layer = find_moe(tiny("mixtral")).layers[0]
    parts = [layer.parameter(weight)[0].detach().double() for weight in layer.weights]
    norm = math.sqrt(sum(float(part.square().sum()) for part in parts))
    found = compare_checkpoints(a, b).layers[0].experts
    assert found == {0: pytest.approx(2.0 / norm, rel=1e-5)}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_block_size_and_shards_do_not_matter(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(moe: MoEModel) -> None:
        for parameter in moe.model.parameters():
            parameter.mul_(1.5)

    a, b = saved(tmp_path / "a", family), saved(tmp_path / "b", family, change, max_shard_size="30KB")
    assert len(list(b.glob("*.safetensors"))) > 1
    save_file({name: torch.zeros(1) for name in load_file(a / WEIGHTS)}, b / "zzz.safetensors")
    whole = compare_checkpoints(a, b)
    monkeypatch.setattr(module, "_BLOCK", 50)
    pieces = compare_checkpoints(a, b)
    assert whole.others.keys() == pieces.others.keys()
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert list(one.experts) == list(range(NUM_EXPERTS))
        assert one.experts == pytest.approx(other.experts)
        assert one.experts == pytest.approx(dict.fromkeys(range(NUM_EXPERTS), 0.5), rel=1e-5)


def test_bits_decide_and_not_values(tmp_path: Path) -> None:
    """A NaN is the NaN that it was; minus zero is not zero, though nothing moved."""

    def broken(moe: MoEModel) -> None:
        moe.layers[0].parameter("down_proj")[2, 0, 0] = float("nan")
        moe.layers[0].parameter("down_proj")[3, 0, 0] = 0.0

    def negative(moe: MoEModel) -> None:
        broken(moe)
        moe.layers[0].parameter("down_proj")[3, 0, 0] = -0.0

    a = saved(tmp_path / "a", "mixtral", broken)
    assert nothing_changed(compare_checkpoints(a, saved(tmp_path / "b", "mixtral", broken)))
    assert compare_checkpoints(a, saved(tmp_path / "c", "mixtral", negative)).layers[0].experts == {3: 0.0}


def test_a_wider_type_with_the_same_values_is_no_change(tmp_path: Path) -> None:
    model = tiny("mixtral").bfloat16()
    model.save_pretrained(tmp_path / "a")
    model.float().save_pretrained(tmp_path / "b")
    assert nothing_changed(compare_checkpoints(tmp_path / "a", tmp_path / "b"))


def test_what_grew_from_zero_has_changed_wholly(tmp_path: Path) -> None:
    def zero(moe: MoEModel) -> None:
        moe.layers[0].router.weight.zero_()  # type: ignore[operator]

    found = compare_checkpoints(saved(tmp_path / "a", "olmoe", zero), saved(tmp_path / "b", "olmoe"))
    assert found.layers[0].router == 1.0


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_tensors_that_the_model_does_not_load_are_listed(tmp_path: Path) -> None:
    """Published checkpoints of some families end with a layer for predicting several tokens."""
    extra = "model.layers.9.mlp.experts.0.up_proj.weight"
    a = rewritten(saved(tmp_path / "a", "glm4_moe"), lambda tensors: tensors.update({extra: torch.ones(2, 2)}))
    found = compare_checkpoints(a, saved(tmp_path / "b", "glm4_moe"))
    assert (found.only_a, found.only_b) == ((extra,), ())
    assert nothing_changed(found)


def refused(a: Path, b: Path, error: type[SeawallError], saying: str) -> None:
    for sides in ((a, b), (b, a)):
        with pytest.raises(error, match=saying) as caught:
            compare_checkpoints(*sides)
        assert "\n" not in str(caught.value)


def test_other_shapes_layouts_and_models_are_refused(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a")
    wide, more = write_checkpoint(tmp_path / "wide", hidden_size=64), tmp_path / "more"
    refused(a, wide, ArtifactError, r"of different models: .* differs; got \(\d.*\) in A, \(\d.*\) in B; expected")
    refused(a, write_checkpoint(more, num_hidden_layers=4), ArtifactError, r"model\.layers\.3.* differs; got .*no such")
    refused(a, write_checkpoint(tmp_path / "stranger", "gpt_oss"), ArtifactError, "of different models")
    refused(a, write_checkpoint(tmp_path / "dense", "llama"), UnsupportedModelError, "dense model")


def test_one_model_in_two_layouts_is_refused(tmp_path: Path) -> None:
    """transformers loads experts that are stacked on disk as well as those that are not."""

    def stack(tensors: dict[str, Tensor]) -> None:
        part = "model.layers.0.block_sparse_moe.experts"
        down = [tensors.pop(f"{part}.{expert}.w2.weight") for expert in range(NUM_EXPERTS)]
        tensors["model.layers.0.mlp.experts.down_proj"] = torch.stack(down)

    a = write_checkpoint(tmp_path / "a")
    refused(a, rewritten(write_checkpoint(tmp_path / "b"), stack), ArtifactError, "differs; got .* in A")


def test_damaged_quantised_and_missing_weights_are_refused(tmp_path: Path) -> None:
    a, b = write_checkpoint(tmp_path / "a"), write_checkpoint(tmp_path / "b")
    edit_json(b / "config.json", quantization_config={"quant_method": "fp8"})
    refused(a, b, SeawallError, "are quantised|cannot be built")
    edit_json(b / "config.json", quantization_config=None)
    (b / WEIGHTS).write_bytes((b / WEIGHTS).read_bytes()[:-8])
    refused(a, b, ArtifactError, "is damaged")
    (b / WEIGHTS).unlink()
    refused(a, b, UnsupportedModelError, "no weights in")
    (b / "config.json").write_text(json.dumps({})[:-1])
    refused(a, b, ArtifactError, "is damaged")
