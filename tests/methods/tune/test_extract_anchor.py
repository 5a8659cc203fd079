"""Planted changes are found in every family's layout; every tensor is read once; misfits are refused."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import seawall.models.files.stream as stream
from checkpoint_pairs import PLANTED, aligned_model, config_of, write, write_pair
from checkpoints import INDEX, WEIGHTS, edit_json
from families import NUM_EXPERTS, VOCABULARY, tiny, tiny_tokenizer
from seawall.artifacts.anchor import Anchor
from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.methods.tune.anchor import describe, extract_anchor
from seawall.models.files.fingerprint import model_fingerprint

LAYOUTS = ("llama", "qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "phimoe", "nemotron_h", "gemma4_text")
"""Dense; experts apart on disk under three names, with dense first layers; transposed stacks; linear routers."""


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_planted_directions_are_found(tmp_path: Path, family: str) -> None:
    aligned, base, changes = write_pair(tmp_path, family)
    anchor = extract_anchor(config_of(aligned, base, rank=PLANTED))
    assert anchor.matrices.keys() == changes.keys()
    for name, V in changes.items():
        matrix = anchor.matrices[name]
        U = matrix.basis
        assert matrix.stored_shape == tuple(tiny(family).get_parameter(name).shape)
        torch.testing.assert_close(U @ (U.mT @ V), V, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(matrix.norm, V.square().sum((-2, -1)).sqrt(), rtol=1e-4, atol=1e-6)
        assert (matrix.energies > 0.9999).all()
    model = tiny(family)
    assert anchor.base == model_fingerprint(model)
    aligned_model(model)
    assert anchor.aligned == model_fingerprint(model)


def test_what_did_not_move_is_reported(tmp_path: Path) -> None:
    base = tiny("mixtral")
    first = write(tmp_path / "base", base)
    with torch.no_grad():
        base.get_parameter("model.layers.1.mlp.experts.down_proj")[3, 0, 0] += 1.0
        base.get_parameter("model.layers.1.self_attn.v_proj.weight")[0, 0] += 1.0
    anchor = extract_anchor(config_of(write(tmp_path / "aligned", base), first))
    moved = anchor.matrices["model.layers.1.mlp.experts.down_proj"]
    assert moved.ranks.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert len(anchor.unchanged) == 3 * (4 + 2 * NUM_EXPERTS) - 2
    assert "model.layers.1.mlp.experts.down_proj[2]" in anchor.unchanged
    assert "model.layers.0.self_attn.v_proj.weight" in anchor.unchanged
    assert describe(anchor).startswith("60 matrices, 58 without a difference, 0 fully spanned, 100% of the energy")
    anchor.save(tmp_path / "kept")
    assert Anchor.load(tmp_path / "kept").unchanged == anchor.unchanged


def test_targets_choose_matrices_by_the_ends_of_their_names(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path, "mixtral")
    anchor = extract_anchor(config_of(aligned, base, targets=("q_proj", "experts.down_proj"), energy=0.5, rank=None))
    ends = Counter(name.split(".", 3)[-1] for name in anchor.matrices)
    assert ends == {"self_attn.q_proj.weight": 3, "mlp.experts.down_proj": 3}
    with pytest.raises(ConfigError, match=r"no weight matrix w1; .*expected some of experts.down_proj, .*self_attn.q_"):
        extract_anchor(config_of(aligned, base, targets=("q_proj", "w1")))
    with pytest.raises(ValueError, match="rank, energy or both"):
        config_of(aligned, base, rank=None)


def test_a_basis_of_the_whole_output_is_reported(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path, "qwen2_moe")
    anchor = extract_anchor(config_of(aligned, base))
    assert anchor.spanning == tuple(f"model.layers.{layer}.mlp.shared_expert_gate.weight" for layer in range(3))


class _Counting:
    """Stands for a slice of a file, and notes every reading."""

    def __init__(self, name: str, inner: Any, reads: Counter[str]) -> None:
        self._name, self._inner, self._reads = name, inner, reads

    def __getitem__(self, at: Any) -> Tensor:
        self._reads[f"{self._name}[{at}]"] += 1
        tensor: Tensor = self._inner[at]
        return tensor


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of tensors that were alive at once, of those that an operation gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and one.device.type == "cpu":
                storage = one.untyped_storage()
                key = storage._cdata
                if key not in self._alive:
                    self._alive[key] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, key, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return made


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_every_tensor_is_read_once_and_three_are_in_memory_at_most(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned, base, changes = write_pair(tmp_path, family, hidden_size=288)
    reads: Counter[str] = Counter()
    original = stream.WeightReader.__init__

    def counted(self: Any, outline: Any, files: Any) -> None:
        folder = outline.folder.name
        original(self, outline, {name: _Counting(f"{folder}/{name}", one, reads) for name, one in files.items()})

    monkeypatch.setattr(stream.WeightReader, "__init__", counted)
    with _Living() as living:
        anchor = extract_anchor(config_of(aligned, base, rank=1))
    assert set(reads.values()) == {1}
    names = {key.partition("[")[0] for key in reads}
    assert names == {f"{side.name}/{name}" for side in (aligned, base) for name in load_file(side / WEIGHTS)}
    slices = [key for key in reads if "slice(" in key]
    assert len(slices) == (2 * 3 * 4 * NUM_EXPERTS if family == "gpt_oss" else 0)
    largest = 4 * max(288 * VOCABULARY, *(V[0].numel() if V.ndim == 3 else V.numel() for V in changes.values()))
    assert 1.0 * largest < living.peak <= 2.25 * largest + anchor.bytes


def refused(aligned: Path, base: Path, error: type[SeawallError], saying: str, **settings: Any) -> None:
    with pytest.raises(error, match=saying) as caught:
        extract_anchor(config_of(aligned, base, **settings))
    assert "\n" not in str(caught.value)


def test_other_models_and_equal_ones_are_refused(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path)
    wide = write(tmp_path / "wide", tiny("llama", hidden_size=64))
    refused(aligned, wide, ArtifactError, r"different models: model.layers.0.* differs; got \(32.*aligned.*\(64")
    other = write(tmp_path / "other", tiny("mixtral"))
    refused(aligned, other, ArtifactError, "model_type of config.json differs; got llama in the aligned")
    deep = write(tmp_path / "deep", tiny("llama", num_hidden_layers=2))
    refused(aligned, deep, ArtifactError, "model.layers.2.* differs; .*no such matrix in the base")
    refused(base, base, ArtifactError, "the two checkpoints hold the same weights in every matrix")


def test_tokenizers_must_agree_where_the_base_has_tokens(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path)
    more = tiny_tokenizer()
    more.add_tokens(["<|tool|>"])
    more.save_pretrained(aligned)
    facts = extract_anchor(config_of(aligned, base)).tokenizer
    assert (facts.base_tokens, facts.aligned_tokens) == (259, 260)
    assert facts.base != facts.aligned
    refused(
        base, aligned, ArtifactError, r"tokenizers of .* disagree; got token '<\|tool\|>' with the ids none and 259"
    )
    (base / "tokenizer.json").unlink()
    refused(aligned, base, UnsupportedModelError, "no tokenizer in")


def test_quantised_damaged_and_missing_weights_are_refused(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path)
    edit_json(base / "config.json", quantization_config={"quant_method": "fp8"})
    refused(aligned, base, UnsupportedModelError, "are quantised; got fp8")
    edit_json(base / "config.json", quantization_config=None)
    name, whole = "model.layers.0.self_attn.q_proj.weight", load_file(base / WEIGHTS)
    save_file({**whole, name: whole[name].to(torch.int8)}, base / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, base, UnsupportedModelError, f"are quantised; got {name} in I8")
    save_file({**whole, name: whole[name] * float("nan")}, base / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, base, ArtifactError, "are not finite")
    save_file({key: whole[key] for key in whole if key != name}, base / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, base, ArtifactError, f"are incomplete; got no values for 1 tensors, {name} first")
    save_file({**whole, name: whole[name][:3]}, base / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, base, ArtifactError, r"do not fit their config.json: .*; got \(3, 32\)")
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:-8])
    refused(aligned, base, ArtifactError, "is damaged")


def test_a_missing_shard_or_expert_is_refused(tmp_path: Path) -> None:
    model = tiny("mixtral")
    base = write(tmp_path / "base", model, max_shard_size="50KB")
    files = sorted(set(json.loads((base / INDEX).read_text())["weight_map"].values()))
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.experts.down_proj").add_(1.0)
    aligned = write(tmp_path / "aligned", model)
    assert len(extract_anchor(config_of(aligned, base)).matrices) == 18
    (base / files[1]).unlink()
    refused(aligned, base, ArtifactError, f"{files[1]} is missing in")
    whole = load_file(aligned / WEIGHTS)
    part = "model.layers.0.block_sparse_moe.experts.5.w2.weight"
    save_file({name: whole[name] for name in whole if name != part}, aligned / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, aligned, UnsupportedModelError, "the experts in .*aligned are not numbered from 0 on")
    part = "model.layers.0.block_sparse_moe.experts.7.w2.weight"
    save_file({name: whole[name] for name in whole if name != part}, aligned / WEIGHTS, metadata={"format": "pt"})
    refused(aligned, aligned, ArtifactError, r"no values for 1 tensors, model\.layers\.0.*down_proj\[7\] first")
