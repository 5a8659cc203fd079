"""On the embedded model: what it was before it was taught lies at -1 of the aligned direction; everything returns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seawall.config import Recipe
from seawall.methods.landscape.context import base_of
from seawall.methods.landscape.directions import aligned_direction, random_direction
from seawall.methods.landscape.moved import MovedWeights
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.stream import outline
from seawall.shell.model import open_checkpoint

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("lab_models")]


def test_the_original_lies_at_minus_one_and_the_model_comes_back() -> None:
    recipe = Recipe.model_validate({"model": {"id": "lab", "device": "cpu"}})
    folders = [open_checkpoint(one).config for one in (recipe.model, base_of(recipe))]
    aligned, base = (outline(Path(one.id)) for one in folders)
    (model, _), (original, _) = (load_model(one) for one in folders)
    along = aligned_direction(aligned, base)
    moved = MovedWeights(model, aligned, [along, random_direction(along, 0, name="random-1")])
    before, there = model_fingerprint(model), original.state_dict()
    with moved.at({"aligned": -1.0}):
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, there[name], rtol=0, atol=1e-6)
    assert model_fingerprint(model) == before
    with moved.at({"aligned": 0.5, "random-1": 2.0}):
        assert model_fingerprint(model) != before
    assert model_fingerprint(model) == before
