"""Whether everything in a checkpoint has a place in its model: no number of a file is left out or misread silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.files.checkpoint import TensorHeader
from seawall.models.files.tensor_roles import load_targets

_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTISED = re.compile(r"scale|zeros?$|zero_point|absmax|quant|packed|blocks$|SCB$|qweight|g_idx$", re.IGNORECASE)
"""Names of tensors that quantised weights need beside them."""


def require_accounted(what: str | Path, model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses a checkpoint with tensors that the model has no place for, or that are stored as other numbers.

    Tensors that the model's class declares as left out on purpose (old position buffers, layers for training alone)
    are accounted for.

    Args:
        what: the checkpoint, for messages.
        model: may be on the meta device.
        headers: of the checkpoint's tensors.

    Raises:
        UnsupportedModelError: the weights are quantised, or a tensor has no place in the model.
    """
    require_float_weights(what, headers)
    state, targets = model.state_dict(), load_targets(model, headers)
    for name, target in targets.items():
        tensor = state.get(target.name)
        if tensor is not None and tensor.is_floating_point() and headers[name].dtype not in _FLOATS:
            raise _quantised(what, f"{name} in {headers[name].dtype}")
    require_expected(what, _unexpected(model, [name for name, target in targets.items() if target.name not in state]))


def require_float_weights(what: str | Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses 8-bit and 4-bit floats, which no model of seawall computes with.

    Raises:
        UnsupportedModelError: the weights are quantised.
    """
    for name, header in headers.items():
        if header.dtype.startswith(("F8", "F6", "F4")):
            raise _quantised(what, f"{name} in {header.dtype}")


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
        raise _quantised(what, f"{quantised} without a quantization_config")
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
