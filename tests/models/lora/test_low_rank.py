"""A low-rank update trains every matrix of a model, computes as written weights do, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from families import random_ids, tiny
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.stream import matrices
from seawall.models.lora.low_rank import trainable_low_rank


@pytest.mark.parametrize("family", ["glm4_moe", "gpt_oss"])
def test_an_update_begins_at_zero_trains_and_is_taken_off(family: str) -> None:
    model = tiny(family)
    before, ids = model_fingerprint(model), random_ids()
    plain = model(ids).logits.detach()
    with trainable_low_rank(model, rank=2, seed=0) as update:
        torch.testing.assert_close(model(ids).logits, plain)
        parameters = dict(update.named_parameters())
        assert len(parameters) == 2 * len(matrices(model))
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        trained = model(ids).logits.detach()
        assert not torch.allclose(trained, plain)
        with update.written(), torch.no_grad():
            assert model_fingerprint(model) != before
            torch.testing.assert_close(model(ids).logits, trained)
        assert model_fingerprint(model) == before
        change = update.tensors()[name := next(iter(matrices(model)))] - model.get_parameter(name)
        assert int(torch.linalg.matrix_rank(change.detach(), atol=1e-5).max()) <= 2
    assert model_fingerprint(model) == before
    assert "forward" not in vars(model)
    torch.testing.assert_close(model(ids).logits, plain)


@pytest.mark.parametrize("family", ["glm4_moe", "gpt_oss"])
def test_checkpointing_changes_no_gradient_and_computes_updated_weights_again(family: str) -> None:
    """Without it, autograd holds the updated weights of all layers until the backward pass."""
    plain, held = _gradients(family, checkpointed=False)
    gradients, held_under_checkpointing = _gradients(family, checkpointed=True)
    assert held_under_checkpointing < 0.3 * held
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def _gradients(family: str, *, checkpointed: bool) -> tuple[list[torch.Tensor | None], int]:
    """The gradients of the factors, and the bytes that autograd saves for them."""
    model, ids, sizes = tiny(family), random_ids(), list[int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(0 if tensor.is_leaf else tensor.untyped_storage().nbytes())
        return tensor

    with trainable_low_rank(model, rank=2, seed=0) as update, gradient_checkpointing(model, enabled=checkpointed):
        parameters = dict(update.named_parameters())
        for parameter in parameters.values():
            parameter.data.add_(0.01)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(ids, labels=ids).loss
        loss.backward()
        return [parameter.grad for parameter in parameters.values()], sum(sizes)
