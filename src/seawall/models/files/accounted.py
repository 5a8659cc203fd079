"""Whether everything in a checkpoint has a place in its model: no number of a file is left out or misread silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.checkpoint import TensorHeader
from seawall.models.files.tensor_roles import LoadTarget, load_targets

_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTISED = re.compile(r"scale|zeros?$|zero_point|absmax|quant|packed|blocks$|SCB$|qweight|g_idx$", re.IGNORECASE)
"""Names of tensors that quantised weights need beside them."""
_SCALES = ("scale", "scale_inv", "scales", "scales_inv")
"""Ends of the names of scales, after the name of the scaled tensor."""
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names of the number of routed experts in config.json."""
_EXPERT = re.compile(r"(?P<before>.*\.experts\.)(?P<number>\d+)(?P<after>\..*)")


def require_accounted(what: str | Path, model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses a checkpoint with tensors that the model has no place for, or that are stored as other numbers.

    Tensors that the model's class declares as left out on purpose (old position buffers, layers for training alone)
    are accounted for.

    Args:
        what: the checkpoint, for messages.
        model: may be on the meta device.
        headers: of the checkpoint's tensors.

    Raises:
        UnsupportedModelError: the weights are quantised, a tensor has no place in the model, two tensors have the same
            place, or the numbers of a layer's experts have a gap.
    """
    require_float_weights(what, headers)
    _require_numbered_experts(what, headers)
    state, targets = model.state_dict(), load_targets(model, headers)
    _require_one_each(what, targets)
    for name, target in targets.items():
        tensor = state.get(target.name)
        if tensor is not None and tensor.is_floating_point() and headers[name].dtype not in _FLOATS:
            raise _quantised(what, f"{name} in {headers[name].dtype}")
    require_expected(what, _unexpected(model, [name for name, target in targets.items() if target.name not in state]))


def require_one_value(what: str | Path, model: PreTrainedModel) -> None:
    """Refuses a checkpoint with two values for a weight that its config.json says is one (tied embeddings): programs
    differ in which of them they take.

    Args:
        what: the checkpoint, for messages.
        model: loaded from it.

    Raises:
        ArtifactError: there are two.
    """
    apart = sorted(model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys())
    if apart:
        raise ArtifactError(
            f"the weights in {what} hold two values for a weight that config.json ties",
            got=f"{apart[0]} with other values than the weight that it is tied to",
            expected="one of the two, or equal values",
            remedy="set tie_word_embeddings=false in config.json if the model has both, or remove one from the files",
        )


def require_scales(what: str | Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses 8-bit floats of a quantised checkpoint without their scales, which would be taken for the weights.

    Raises:
        ArtifactError: a tensor has none.
    """
    for name, header in headers.items():
        is_scale = header.dtype == "F8_E8M0" or "scale" in name.rpartition(".")[2]
        if header.dtype.startswith("F8") and not is_scale and not any(f"{name}_{end}" in headers for end in _SCALES):
            raise ArtifactError(
                f"the weights in {what} are incomplete",
                got=f"{name} in {header.dtype} without a scale",
                expected=f"{name}_scale or {name}_scale_inv beside it",
                remedy="copy or download the model again",
            )


def require_float_weights(what: str | Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses 8-bit and 4-bit floats, which no model of seawall computes with.

    Raises:
        UnsupportedModelError: the weights are quantised.
    """
    for name, header in headers.items():
        if header.dtype.startswith(("F8", "F6", "F4")):
            raise _quantised(what, f"{name} in {header.dtype}")


def require_top_k(raw: Mapping[str, Any], folder: Path) -> None:
    """Refuses a number of experts per token that the model cannot take: 0 leaves every expert out without an error.

    Args:
        raw: the model's config.json.
        folder: of the model, for messages.

    Raises:
        ArtifactError: it is 0 or less, or larger than the number of experts.
    """
    text = raw.get("text_config")
    config = text if isinstance(text, Mapping) else raw
    top_k, totals = config.get("num_experts_per_tok"), [config.get(name) for name in _NUM_EXPERTS]
    total = next((number for number in totals if isinstance(number, int) and number > 0), None)
    if total is None or not isinstance(top_k, int) or 1 <= top_k <= total:
        return
    raise ArtifactError(
        f"num_experts_per_tok in {folder / 'config.json'} is wrong",
        got=top_k,
        expected=f"1 to {total}, the number of experts",
        remedy="restore the model's own config.json",
    )


def _require_one_each(what: str | Path, targets: Mapping[str, LoadTarget]) -> None:
    """Refuses two tensors for one parameter, such as `layers.0...` beside `model.layers.0...`: one would win."""
    owners: dict[str, str] = {}
    for name, target in targets.items():
        if target.converter is None and owners.setdefault(target.name, name) != name:
            raise UnsupportedModelError(
                f"the weights in {what} hold two tensors for one parameter",
                got=f"{owners[target.name]} and {name}",
                expected=f"one of them, for {target.name}",
                remedy="remove the one that does not belong to the model, or copy the model again",
            )


def _require_numbered_experts(what: str | Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses a layer whose experts are not numbered from 0 on: loading stacks them in order, so that every expert
    after a gap would get another number, and perhaps another expert's row of the router.
    """
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in headers:
        expert = _EXPERT.fullmatch(name)
        if expert is not None:
            numbers.setdefault((expert["before"], expert["after"]), set()).add(int(expert["number"]))
    for (before, after), present in numbers.items():
        missing = sorted(set(range(max(present))) - present)
        if missing:
            raise UnsupportedModelError(
                f"the experts in {what} are not numbered from 0 on",
                got=f"{before}{max(present)}{after} without {len(missing)} experts before it, {missing[0]} first",
                expected="experts 0, 1, 2, ... without a gap, so that each keeps its row of the router",
                remedy="number the experts anew, in the order of the router's rows, or copy the model again",
            )


def require_expected(what: str | Path, unexpected: Iterable[str]) -> None:
    """Refuses tensors that loading leaves out.

    Args:
        what: the checkpoint, for messages.
        unexpected: their names.

    Raises:
        UnsupportedModelError: there is such a tensor.
    """
    names = sorted(unexpected)
    if not names:
        return
    quantised = next((name for name in names if _QUANTISED.search(name)), None)
    if quantised is not None:
        raise _quantised(what, f"{quantised} without a quantization_config that takes it")
    raise UnsupportedModelError(
        f"the weights in {what} hold tensors that the model has no place for",
        got=f"{len(names)} tensors, {names[0]} first",
        expected="the tensors of the model that config.json describes, and no others",
        remedy="use the config.json of these weights, or remove the other tensors",
    )


def _unexpected(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    declared = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in declared))
    return [name for name in names if ignored.search(name) is None]


def _quantised(what: str | Path, got: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the weights in {what} are quantised",
        got=got,
        expected="float32, bfloat16 or float16 weights, which seawall can change",
        remedy="use the model's unquantised version, or dequantise the weights first",
    )
