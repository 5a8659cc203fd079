"""The hardening artifact: what comes back, and that nothing which takes refusals away is written or read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.hardening import Effect, Hardening
from seawall.artifacts.store import load_document, save_document
from seawall.errors import ArtifactError


def effect(before: float, after: float) -> Effect:
    first, second = (Rate(one, max(0.0, one - 0.1), min(1.0, one + 0.1), 40, 1) for one in (before, after))
    return Effect(first, second, difference=after - before, low=after - before - 0.1, high=after - before + 0.1, p=0.01)


def garbage(before: float) -> Effect:
    """An effect under which 30 of 40 replies cannot be judged, and all others refuse."""
    first, second = Rate(before, 0.9, 1.0, 40), Rate(1.0, 0.7, 1.0, 40, 30)
    return Effect(first, second, difference=0.0, low=-0.1, high=0.1, p=1.0)


def hardening(**changes: Any) -> Hardening:
    made = Hardening(
        model_fingerprint="sha256:" + "ab" * 32,
        dtype="float32",
        layer=2,
        position=-1,
        coefficient=0.5,
        effects={"attack:story": effect(0.9, 0.1), "borderline": effect(0.1, 0.3), "benign": effect(1.0, 0.95)},
        vector_D=torch.linspace(-1, 1, 8),
    )
    return replace(made, **changes)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made = hardening()
    made.save(tmp_path)
    found = Hardening.load(tmp_path)
    assert torch.equal(found.vector_D, made.vector_D)
    fields = set(vars(made)) - {"vector_D"}
    assert all(getattr(found, name) == getattr(made, name) for name in fields)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficient": -0.5},
        {"coefficient": 0.0},
        {"coefficient": float("nan")},
        {"effects": {}},
        {"effects": {"plain": effect(0.9, 0.1), "borderline": effect(0.2, 0.2)}},
        {"effects": {"attack:story": effect(0.2, 0.9)}},
        {"effects": {"plain": effect(0.9, 0.7), "borderline": effect(0.1, 0.5), "benign": effect(0.9, 0.5)}},
        {"effects": {"borderline": effect(0.1, 0.5)}},
        {"effects": {"attack:story": effect(0.9, 0.1), "plain": effect(1.0, 0.7)}},
        {"effects": {"attack:story": effect(0.9, 0.1), "plain": garbage(1.0)}},
    ],
    ids=[
        "negative",
        "zero",
        "nan",
        "unmeasured",
        "fewer refusals",
        "more attacks succeed",
        "only harmless",
        "no harmful",
        "plain refusal falls while attacks do",
        "plain refusals become garbage",
    ],
)
def test_what_takes_refusals_away_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"hardening\.json would make a model refuse less; .*mode induce"):
        hardening(**changes).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_takes_refusals_away_is_not_read(tmp_path: Path) -> None:
    hardening().save(tmp_path)
    path = tmp_path / "hardening.json"
    document = load_document(path, "hardening")
    save_document(path, "hardening", {**document, "coefficient": -0.5})
    with pytest.raises(ArtifactError, match=r"would make a model refuse less; got the coefficient -0\.5"):
        Hardening.load(tmp_path)
    save_document(path, "hardening", {**document, "mode": "suppress"})
    with pytest.raises(ArtifactError, match="mode is wrong; got Input should be 'induce'"):
        Hardening.load(tmp_path)


def test_a_changed_direction_is_not_read(tmp_path: Path) -> None:
    hardening().save(tmp_path / "one")
    hardening(vector_D=-torch.linspace(-1, 1, 8)).save(tmp_path / "other")
    (tmp_path / "other/hardening.safetensors").replace(tmp_path / "one/hardening.safetensors")
    with pytest.raises(ArtifactError, match="is damaged or was changed"):
        Hardening.load(tmp_path / "one")
