"""The output layer on a slice of each row."""

from __future__ import annotations

import pytest
import torch

from families import random_ids, tiny
from seawall.models.forward import contiguous_output_layer


def test_output_layer_gets_its_input_contiguous_and_only_inside() -> None:
    model, seen = tiny("qwen3_moe"), list[bool]()
    ids = random_ids()
    with torch.no_grad():
        plain = model(input_ids=ids, logits_to_keep=2).logits
        with contiguous_output_layer(model):
            handle = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
            inside = model(input_ids=ids, logits_to_keep=2).logits
        model(input_ids=ids, logits_to_keep=2)
    handle.remove()
    assert seen == [True, False]
    assert torch.allclose(inside, plain, atol=1e-6)


def test_hook_goes_with_an_error_too() -> None:
    model = tiny("qwen3_moe")
    with pytest.raises(RuntimeError, match="stop"), contiguous_output_layer(model):
        raise RuntimeError("stop")
    assert not model.lm_head._forward_pre_hooks
