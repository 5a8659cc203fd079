"""Training of all parameters: tied ones are one copy, and the model changes only by `write_back`."""

from __future__ import annotations

import torch

from families import random_ids, tiny
from seawall.models.moe.full_finetune import trainable_model


def test_tied_weights_are_one_copy_and_stay_tied() -> None:
    model = tiny("glm4_moe", tie_word_embeddings=True)
    ids, before = random_ids(), model.model.embed_tokens.weight.detach().clone()
    with trainable_model(model) as copies:
        names = [name for name, _ in copies.named_parameters()]
        assert "model.embed_tokens.weight" in names
        assert "lm_head.weight" not in names
        model(input_ids=ids, labels=ids).loss.backward()
        embedding = copies.get("model.embed_tokens.weight")
        assert embedding.grad is not None
        with torch.no_grad():
            embedding.sub_(0.1 * embedding.grad)
        trained = model(input_ids=ids).logits.detach()
        copies.write_back()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)
    # The gradient of the output layer reaches tokens that the prompt lacks.
    absent = [token for token in range(3, 20) if token not in ids.flatten().tolist()]
    assert not torch.equal(model.lm_head.weight[absent], before[absent])
    assert torch.equal(model(input_ids=ids).logits, trained)


def test_untied_weights_are_two_copies() -> None:
    model = tiny("glm4_moe")
    with trainable_model(model) as copies:
        names = [name for name, _ in copies.named_parameters()]
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(names)
