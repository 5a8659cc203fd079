"""Adapters made wrong on purpose are each named; right ones of many kinds raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from checkpoints import config_of, edit_json, write_checkpoint
from families import tiny
from seawall.jobs.doctor import Diagnosis, diagnose, lora_settings
from seawall.models.lora.findings import Subject
from seawall.models.lora.merge import silence_peft

peft = pytest.importorskip("peft")
WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]
STACKS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", "olmoe")


def attached(model: PreTrainedModel, **settings: Any) -> Any:
    with silence_peft():
        return peft.get_peft_model(model, peft.LoraConfig(**settings))


def trained(folder: Path, base: Path, *, family: str = "olmoe", scale: float = 0.05, **settings: Any) -> Path:
    """An adapter whose experts were used unequally, as training leaves it."""
    model = tiny(family)
    model.name_or_path = str(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **STACKS, **settings}
    wrapped = attached(model, lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            module = wrapped.get_submodule(name.rpartition(".lora_B.")[0])
            experts = getattr(module, "num_experts", 1)
            sizes = torch.randn(experts, generator=generator).mul(0.8).exp()
            noise = torch.randn(parameter.shape, generator=generator).reshape(parameter.shape[0], -1, experts)
            parameter.data = (scale * noise * sizes).reshape(parameter.shape)
    with silence_peft():
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change({name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def found(base: Path, adapter: Path, **settings: Any) -> set[Subject]:
    diagnosis = diagnose(config_of(base, **settings), adapter)
    return wrong(diagnosis)


def wrong(diagnosis: Diagnosis) -> set[Subject]:
    assert diagnosis.adapter is not None
    return {finding.subject for finding in diagnosis.adapter.findings if finding.is_wrong}


def otherwise_packed(tensors: Tensors) -> Tensors:
    """B of the stacks as (experts, r) instead of (r, experts)."""
    return {name: _packed(name, tensor) for name, tensor in tensors.items()}


def _packed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if ".experts." not in name or ".lora_B." not in name:
        return tensor
    return tensor.reshape(tensor.shape[0], 4, -1).transpose(1, 2).reshape(tensor.shape)


def one_pair_per_expert(tensors: Tensors) -> Tensors:
    """Factors of single experts, as before transformers 5."""
    split = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name, tensor in tensors.items():
        if ".experts.lora_A." in name or ".experts.lora_B." in name:
            for expert, part in enumerate(tensor.chunk(8, dim=0 if ".lora_A." in name else 1)):
                split[name.replace(".experts.", f".experts.{expert}.down_proj.")] = part
    return split


def sides_swapped(tensors: Tensors) -> Tensors:
    """A and B of the stacks with inputs and outputs the other way round, as before PEFT 0.19."""
    swapped = dict(tensors)
    for name, tensor in tensors.items():
        if ".experts." in name:
            other = name.replace(".lora_A.", ".lora_?.").replace(".lora_B.", ".lora_A.").replace(".lora_?.", ".lora_B.")
            swapped[other] = tensor.T
    return swapped


def without_expert(tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if name.endswith("layers.1.mlp.experts.lora_A.weight"):
            tensor.reshape(8, 4, -1)[3] = 0
        elif name.endswith("layers.1.mlp.experts.lora_B.weight"):
            tensor.reshape(tensor.shape[0], 4, 8)[..., 3] = 0
    return tensors


def without_layer(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name}


def prefixed(tensors: Tensors) -> Tensors:
    return {name.replace("model.layers", "language_model.layers"): tensor for name, tensor in tensors.items()}


def not_finite(tensors: Tensors) -> Tensors:
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def untrained(tensors: Tensors) -> Tensors:
    return {name: tensor * (".lora_B." not in name) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (otherwise_packed, "packing"),
        (one_pair_per_expert, "layout"),
        (sides_swapped, "layout"),
        (without_expert, "experts"),
        (without_layer, "keys"),
        (prefixed, "keys"),
        (not_finite, "values"),
        (untrained, "values"),
    ],
)
def test_a_file_made_wrong_is_named(
    change: Callable[[Tensors], Tensors], subject: Subject, base: Path, tmp_path: Path
) -> None:
    adapter = trained(tmp_path / "adapter", base)
    rewritten(adapter, change)
    assert subject in found(base, adapter)


@pytest.mark.parametrize(
    ("settings", "subject"), [({"r": 8}, "rank"), ({"lora_alpha": 0}, "values"), ({"peft_type": "IA3"}, "files")]
)
def test_a_configuration_made_wrong_is_named(
    settings: dict[str, Any], subject: Subject, base: Path, tmp_path: Path
) -> None:
    adapter = trained(tmp_path / "adapter", base)
    edit_json(adapter / "adapter_config.json", **settings)
    assert found(base, adapter) == {subject}


def test_another_base_is_named(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)
    other = tmp_path / "other"
    tiny("olmoe", seed=1).save_pretrained(other)
    for path in base.glob("*token*"):
        (other / path.name).write_bytes(path.read_bytes())
    for path in base.glob("*.jinja"):
        (other / path.name).write_bytes(path.read_bytes())
    assert found(other, adapter) == {"base"}
    wider = write_checkpoint(tmp_path / "wider", "olmoe", hidden_size=48)
    assert found(wider, adapter) >= {"shapes", "base"}


def test_a_hub_name_of_another_base_is_a_remark_beside_a_folder(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="someone/other-moe")
    diagnosis = diagnose(config_of(base), adapter)
    assert wrong(diagnosis) == set()
    assert diagnosis.adapter is not None
    assert [finding.subject for finding in diagnosis.adapter.findings] == ["base"]


def test_tied_embeddings_are_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "llama", tie_word_embeddings=True)
    adapter = trained_dense(tmp_path / "adapter", base, ["lm_head"], tie_word_embeddings=True)
    assert found(base, adapter) == {"tied"}


def test_an_update_that_rounding_loses_is_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "olmoe")
    adapter = trained(tmp_path / "adapter", base, scale=2e-4)
    assert found(base, adapter, dtype="bfloat16") == {"merge"}


def test_a_pickled_adapter_is_named(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert found(base, adapter) == {"files"}


def trained_dense(folder: Path, base: Path, targets: list[str], **overrides: Any) -> Path:
    model: PreTrainedModel = tiny("llama", **overrides)
    model.name_or_path = str(base)
    wrapped = attached(model, r=4, target_modules=targets, task_type="CAUSAL_LM")
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    with silence_peft():
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


RIGHT: dict[str, dict[str, Any]] = {
    "attention and experts": {},
    "experts alone": {"target_modules": []},
    "attention alone": {"target_parameters": None},
    "rank 1": {"r": 1},
    "one stack": {"target_parameters": ["mlp.experts.down_proj"]},
    "rank-stabilised": {"use_rslora": True},
    "another rank for one layer": {"target_parameters": None, "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_adapter_raises_nothing(name: str, base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base, **RIGHT[name])
    diagnosis = diagnose(config_of(base), adapter)
    assert diagnosis.adapter is not None
    assert diagnosis.adapter.findings == ()
    assert diagnosis.adapter.merged


def test_components_by_size_are_no_other_packing(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)

    def by_size(tensors: Tensors) -> Tensors:
        """As from a singular value decomposition: every expert's first component is its largest."""
        sizes = torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None]
        for name, tensor in tensors.items():
            if ".experts." in name and ".lora_B." in name:
                unit = torch.nn.functional.normalize(tensor, dim=0)
                tensor.copy_(0.05 * (unit.reshape(tensor.shape[0], 4, 8) * sizes).reshape(tensor.shape))
        return tensors

    rewritten(adapter, by_size)
    assert found(base, adapter) == set()


def test_a_right_adapter_of_a_dense_model_raises_nothing(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "llama")
    diagnosis = diagnose(config_of(base), trained_dense(tmp_path / "adapter", base, ["q_proj", "down_proj"]))
    assert diagnosis.adapter is not None
    assert (diagnosis.adapter.findings, diagnosis.adapter.experts, diagnosis.adapter.merged) == ((), None, True)


def test_experts_that_no_token_reached_are_a_remark(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)

    def idle(tensors: Tensors) -> Tensors:
        for name, tensor in tensors.items():
            if ".experts." in name and ".lora_B." in name:
                tensor.reshape(tensor.shape[0], 4, 8)[..., 5] = 0
        return tensors

    rewritten(adapter, idle)
    diagnosis = diagnose(config_of(base), adapter)
    assert wrong(diagnosis) == set()
    assert diagnosis.adapter is not None
    assert diagnosis.adapter.experts is not None
    assert (diagnosis.adapter.experts.touched, diagnosis.adapter.experts.total) == (42, 48)
    (finding,) = diagnosis.adapter.findings
    assert "6 experts have no update" in finding.text


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "gpt_oss", "glm4_moe", "llama"])
def test_the_ready_settings_reach_every_expert(family: str) -> None:
    model = tiny(family)
    settings = lora_settings(model)
    wrapped = attached(model, **settings)
    names = {name.rpartition(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A." in name}
    stacks = [name for name in names if "experts" in name]
    assert len(stacks) == (0 if family == "llama" else 2 * sum("router" not in name for name in _experts(model)))
    assert any("q_proj" in name or "q_a_proj" in name for name in names)


def _experts(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if name.endswith("experts") and "shared" not in name]
