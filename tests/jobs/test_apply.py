"""`apply` changes the files of a checkpoint, in every layout, without loading the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints import config_of, write_checkpoint, write_shards
from families import FAMILIES
from seawall.artifacts.delta import Delta
from seawall.errors import ArtifactError
from seawall.jobs.apply import apply_delta
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.open import Checkpoint
from seawall.models.moe.find import find_moe
from seawall.models.moe.routers import router_parameters


def _delta(folder: Path) -> Delta:
    """Two experts of a layer and its router change."""
    model, _ = load_model(config_of(folder, device="cpu"))
    moe, base = find_moe(model), model_fingerprint(model)
    layer, state = moe.layers[1], model.state_dict()
    slices: dict[str, tuple[int, ...] | None] = {layer.full_name(name): (1, 3) for name in layer.weights}
    slices |= {name: None for name in router_parameters(moe) if name.startswith(layer.router_name)}
    before = {
        name: state[name].clone() if indices is None else state[name][list(indices)] for name, indices in slices.items()
    }
    with torch.no_grad():
        for name, indices in slices.items():
            state[name][slice(None) if indices is None else list(indices)] *= -1.5
    return Delta.between(before, state, slices, base_model=base, result_model=model_fingerprint(model))


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_delta_is_applied_and_reverted_file_by_file(family: str, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", family)
    (base / "README.md").write_text("The base model's card.")
    delta = _delta(base)
    assert apply_delta(delta, config_of(base), tmp_path / "repaired") == delta.result_model
    repaired, _ = load_model(config_of(tmp_path / "repaired", device="cpu"))
    assert model_fingerprint(repaired) == delta.result_model
    assert not (tmp_path / "repaired" / "README.md").exists()
    again = apply_delta(delta, config_of(tmp_path / "repaired"), tmp_path / "reverted", revert=True)
    assert again == delta.base_model
    assert (tmp_path / "reverted" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("never_loaded")
def test_shards_stay_shards_and_only_changed_ones_differ(tmp_path: Path) -> None:
    base = write_shards(tmp_path / "base")
    delta = _delta(base)
    apply_delta(delta, config_of(base), tmp_path / "repaired")
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert names == sorted(path.name for path in (tmp_path / "repaired").glob("*.safetensors"))
    same = [(base / name).read_bytes() == (tmp_path / "repaired" / name).read_bytes() for name in names]
    assert any(same)
    assert not all(same)


@pytest.mark.usefixtures("never_loaded")
def test_other_weights_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base, other = write_checkpoint(tmp_path / "base"), write_checkpoint(tmp_path / "other", initializer_range=0.3)
    delta = _delta(base)
    with pytest.raises(ArtifactError, match=r"does not fit this model.*name the model"):
        apply_delta(delta, config_of(other), tmp_path / "out")
    apply_delta(delta, config_of(base), tmp_path / "repaired")
    with pytest.raises(ArtifactError, match="nothing is left to do"):
        apply_delta(delta, config_of(tmp_path / "repaired"), tmp_path / "out")
    name = next(iter(delta.bits))
    delta.bits[name].bitwise_xor_(1)
    with pytest.raises(ArtifactError, match="do not lead to the weights"):
        apply_delta(delta, config_of(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()
