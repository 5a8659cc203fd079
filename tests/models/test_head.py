"""The forward pass of training: the output layer on a slice of each row, and rows that padding changes."""

from __future__ import annotations

import pytest
import torch

from families import random_ids, tiny
from seawall.data.batching import collate
from seawall.data.templating import Encoded
from seawall.errors import UnsupportedModelError
from seawall.models import greedy
from seawall.models.forward import contiguous_output_layer, run_model


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


def test_a_model_that_left_padding_changes_refuses_a_padded_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3_moe")
    rows = [Encoded(ids, ids) for ids in ([3, 4, 5, 6], [7, 8])]
    batches = {side: collate(rows, 0, side=side) for side in ("left", "right")}
    for batch in batches.values():
        run_model(model, batch, keep=1)
    monkeypatch.setitem(greedy._checked, model, (64, False))
    with pytest.raises(UnsupportedModelError, match="padded on the left; got a batch of 2 rows"):
        run_model(model, batches["left"], keep=1)
    run_model(model, batches["right"], keep=1)
    run_model(model, collate(rows[1:], 0, side="left"), keep=1)
