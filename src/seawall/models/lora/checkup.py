"""Whether a saved LoRA adapter is what its folder says: keys, shapes, experts, packing, base model, and its merge.

Reads the adapter's own tensors and the shapes of its model; only `merge_findings` takes the model's weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import SeawallError
from seawall.models.files.checkpoint import read_json
from seawall.models.lora.findings import AdapterCheck, Finding
from seawall.models.lora.merge import (
    CONFIG,
    WEIGHTS,
    attach_saved_adapter,
    check_adapter,
    merge_attached,
    plain_factor,
    reading_adapter,
    require_peft,
)
from seawall.models.lora.merged import probe_logits
from seawall.models.lora.slices import expert_findings

_PER_EXPERT = re.compile(r"\.experts\.\d+\.")


def check_files(folder: Path, model: PreTrainedModel) -> AdapterCheck:
    """Checks an adapter against its model's shapes.

    Args:
        folder: that PEFT's `save_pretrained` wrote.
        model: the model that it was trained on, on the meta device; PEFT adds its modules to it.

    Raises:
        SeawallError: PEFT is not installed.
    """
    tied = _tied_names(model)
    try:
        check_adapter(folder)
        settings = read_json(folder / CONFIG)
        tensors = {plain_factor(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
        expected = _expected_factors(model, folder)
    except SafetensorError as error:
        return AdapterCheck(0, None, (Finding("files", f"{WEIGHTS} is damaged: {error}"),))
    except SeawallError as error:
        return AdapterCheck(0, None, (Finding("files", str(error)),))
    shapes = {name: shape for name, (shape, _) in expected.items()}
    stacks = {name: experts for name, (_, experts) in expected.items() if experts > 1}
    findings = [*_key_findings(tensors, shapes), *_shape_findings(tensors, shapes, stacks)]
    findings += _value_findings(tensors, settings)
    findings += [
        Finding("tied", f"LoRA on {name}, a weight that the model uses twice (tied embeddings): merged it changes both")
        for name in sorted({name.rpartition(".lora_")[0] for name in tensors} & tied)
    ]
    count = None
    fitting = {name: experts for name, experts in stacks.items() if _fits(tensors, shapes, name)}
    if fitting:
        count, of_experts = expert_findings(tensors, fitting)
        findings += of_experts
    return AdapterCheck(len(expected) // 2, count, tuple(findings))


def merge_findings(model: PreTrainedModel, folder: Path) -> list[Finding]:
    """Attaches an adapter, merges it, and compares logits; empty where merged and attached are the same model.

    Args:
        model: with its weights; changed in place.
        folder: of an adapter without findings so far.

    Raises:
        SeawallError: PEFT is not installed.
    """
    try:
        wrapped = attach_saved_adapter(model, folder)
        adapted = probe_logits(wrapped)
        with wrapped.disable_adapter():
            plain = probe_logits(wrapped)
        if bool((adapted == plain).all()):
            return [Finding("values", "attached to the model, the adapter changes no logit of two prompts")]
        merge_attached(wrapped, folder)
    except SeawallError as error:
        return [Finding("merge", str(error))]
    return []


def _expected_factors(model: PreTrainedModel, folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and number of experts of each factor that the adapter's configuration makes in the model."""
    peft = require_peft()
    with reading_adapter(model, folder):
        wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(folder)), "default")
    expected = {}
    for name, tensor in wrapped.state_dict().items():
        if re.search(r"\.lora_[AB]\.", name):
            module = wrapped.get_submodule(name.rpartition(".lora_")[0])
            expected[plain_factor(name)] = (tuple(tensor.shape), int(getattr(module, "num_experts", 1)))
    return expected


def _key_findings(tensors: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> Iterator[Finding]:
    """Names of factors that the model lacks, and factors of the model that the file lacks."""
    unknown = sorted(name for name in tensors if ".lora_" in name and name not in shapes)
    missing = sorted(name for name in shapes if name not in tensors)
    layout = [name for name in unknown if _PER_EXPERT.search(name)]
    if layout:
        yield Finding(
            "layout",
            f"an older layout: {len(layout)} factors of single experts ({layout[0]} first), where this model has one "
            "stack for all experts of a layer; merge it with the PEFT and transformers that wrote it",
        )
    elif unknown:
        yield Finding("keys", f"{len(unknown)} factors resolve to nothing in this model, {unknown[0]} first")
    if missing and not layout:
        yield Finding("keys", f"{len(missing)} of {len(shapes)} factors are not in the file, {missing[0]} first")


def _shape_findings(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], stacks: Mapping[str, int]
) -> Iterator[Finding]:
    """Factors of another size: a stack's sides the other way round, another rank, or another model."""
    wrong = [name for name, shape in shapes.items() if name in tensors and tuple(tensors[name].shape) != shape]
    if not wrong:
        return
    name = wrong[0]
    got, expected = tuple(tensors[name].shape), shapes[name]
    shape_text = f"{len(wrong)} factors have another shape, {name} first: {list(got)}, the model takes {list(expected)}"
    opposite = name.replace(".lora_A.", ".lora_?.").replace(".lora_B.", ".lora_A.").replace(".lora_?.", ".lora_B.")
    if name in stacks and got == shapes[opposite][::-1]:
        yield Finding("layout", f"an older layout: inputs and outputs of the experts are swapped; {shape_text}")
    elif _rank_side(name, got) != _rank_side(name, expected) and _width(name, got) == _width(name, expected):
        yield Finding("rank", f"the rank in {CONFIG} is not the file's: {shape_text}")
    else:
        yield Finding("shapes", f"made for a model of other sizes: {shape_text}")


def _value_findings(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Iterator[Finding]:
    broken = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if broken:
        yield Finding("values", f"{len(broken)} factors hold NaN or infinity, {broken[0]} first")
    sides = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    if sides and not any(bool(tensor.any()) for tensor in sides):
        yield Finding("values", "every B is zero: the adapter was never trained, or lost its update")
    alphas = [settings.get("lora_alpha"), *(settings.get("alpha_pattern") or {}).values()]
    if 0 in alphas:
        yield Finding("values", "lora_alpha is 0: the update is multiplied by nothing")


def _fits(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> bool:
    """Whether both factors of a stack are there, in their shapes and finite."""
    base = name.rpartition(".lora_")[0]
    sides = (f"{base}.lora_A.weight", f"{base}.lora_B.weight")
    return all(
        side in tensors and tuple(tensors[side].shape) == shapes[side] and bool(tensors[side].isfinite().all())
        for side in sides
    )


def _tied_names(model: PreTrainedModel) -> set[str]:
    """Modules of the embeddings of a model whose input and output share a weight."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {name for name, module in model.named_modules() if id(module) in ends}


def _rank_side(name: str, shape: tuple[int, ...]) -> int:
    return shape[0] if ".lora_A." in name else shape[-1]


def _width(name: str, shape: tuple[int, ...]) -> int:
    return shape[-1] if ".lora_A." in name else shape[0]
