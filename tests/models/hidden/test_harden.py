"""A hardened model adds its direction for as long as it lives, and nothing else changes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from families import FAMILIES, WIDTH, random_ids, tiny
from seawall.errors import ArtifactError, ConfigError
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.hidden.harden import harden, is_hardened
from seawall.models.hidden.residual import capture_residual

VECTOR_D = torch.linspace(-1, 1, WIDTH)


@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_the_direction_enters_its_layer_on_every_token(family: str) -> None:
    model, ids = tiny(family), random_ids()
    with torch.no_grad(), capture_residual(model) as plain:
        before = model(input_ids=ids).logits
    weights = model_fingerprint(model)
    handle = harden(model, VECTOR_D, layer=1, coefficient=0.5)
    with torch.no_grad(), capture_residual(model) as hardened:
        after = model(input_ids=ids).logits
    torch.testing.assert_close(hardened.inputs[1], plain.inputs[1] + 0.5 * VECTOR_D)
    assert torch.equal(hardened.inputs[0], plain.inputs[0])
    assert not torch.equal(before, after)
    assert model_fingerprint(model) == weights
    handle.remove()
    assert not is_hardened(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_what_does_not_fit_is_refused_and_leaves_no_hook() -> None:
    model = tiny("olmoe")
    for layer, vector_D in ((3, VECTOR_D), (-1, VECTOR_D), (0, VECTOR_D[1:])):
        with pytest.raises(ArtifactError, match="the hardening does not fit the model; got layer"):
            harden(model, vector_D, layer=layer, coefficient=1.0)
    assert not is_hardened(model)
    harden(model, VECTOR_D, layer=2, coefficient=1.0)
    with pytest.raises(ConfigError, match="expected a model without hardening"):
        harden(model, VECTOR_D, layer=0, coefficient=1.0)


def test_it_keeps_no_model_alive() -> None:
    model = tiny("olmoe")
    harden(model, VECTOR_D, layer=1, coefficient=1.0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
