"""An anchor comes back from disk as it was, and an anchor that cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seawall.artifacts.anchor import Anchor, AnchorMatrix, TokenizerFacts
from seawall.errors import ArtifactError

FACTS = TokenizerFacts("sha256:t", "sha256:u", 272, 273)


def matrix(difference: Tensor, rank: int, *, transposed: bool = False) -> AnchorMatrix:
    basis, values, _ = torch.linalg.svd(difference, full_matrices=False)
    kept = values[..., :rank]
    return AnchorMatrix(
        basis=basis[..., :rank] * (kept > 1e-5).unsqueeze(-2),
        singular_values=kept * (kept > 1e-5),
        norm=difference.square().sum((-2, -1)).sqrt(),
        columns=difference.shape[-1],
        transposed=transposed,
    )


@pytest.fixture
def anchor() -> Anchor:
    generator = torch.Generator().manual_seed(1)
    stack = torch.randn(3, 4, 5, generator=generator)
    stack[1] = 0.0
    plain = torch.randn(6, 4, generator=generator)
    return Anchor(
        aligned="sha256:aligned",
        base="sha256:base",
        tokenizer=FACTS,
        matrices={"q.weight": matrix(plain, 2), "experts.down_proj": matrix(stack, 4, transposed=True)},
    )


def test_save_and_load(anchor: Anchor, tmp_path: Path) -> None:
    anchor.save(tmp_path)
    again = Anchor.load(tmp_path)
    assert (again.aligned, again.base, again.tokenizer) == ("sha256:aligned", "sha256:base", FACTS)
    assert list(again.matrices) == list(anchor.matrices)
    for name, one in anchor.matrices.items():
        other = again.matrices[name]
        assert (other.columns, other.transposed) == (one.columns, one.transposed)
        for part in ("basis", "singular_values", "norm"):
            assert torch.equal(getattr(other, part), getattr(one, part))


def test_facts_of_the_matrices(anchor: Anchor) -> None:
    plain, stack = anchor.matrices.values()
    assert (plain.stored_shape, stack.stored_shape) == ((6, 4), (3, 5, 4))
    assert stack.ranks.tolist() == [4, 0, 4]
    torch.testing.assert_close(stack.energies, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    assert 0.3 < float(plain.energies) < 0.99
    assert anchor.unchanged == ("experts.down_proj[1]",)
    assert anchor.spanning == ("experts.down_proj[0]", "experts.down_proj[2]")
    assert anchor.bytes == 4 * (6 * 2 + 2 + 1 + 3 * (4 * 4 + 4 + 1))


def test_another_model_is_refused(anchor: Anchor) -> None:
    anchor.require_model("sha256:aligned")
    with pytest.raises(ArtifactError, match="the anchor was made from another model"):
        anchor.require_model("sha256:base")


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda one: replace(one, basis=one.basis * 1.1), "an orthonormal basis at q.weight"),
        (lambda one: replace(one, basis=one.basis.double()), "q.weight in float32"),
        (lambda one: replace(one, basis=one.basis[0]), "a matrix, or a stack of matrices, at q.weight"),
        (lambda one: replace(one, singular_values=one.singular_values[:1]), "a singular value for every column"),
        (lambda one: replace(one, singular_values=one.singular_values.flip(0)), "descending singular values"),
        (lambda one: replace(one, norm=one.norm * float("nan")), "finite numbers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    anchor: Anchor, tmp_path: Path, change: Callable[[AnchorMatrix], AnchorMatrix], saying: str
) -> None:
    broken = replace(anchor, matrices={**anchor.matrices, "q.weight": change(anchor.matrices["q.weight"])})
    broken.save(tmp_path)
    with pytest.raises(ArtifactError, match=saying) as caught:
        Anchor.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_file_is_refused(anchor: Anchor, tmp_path: Path) -> None:
    anchor.save(tmp_path)
    path = tmp_path / "anchor.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="is damaged or was changed"):
        Anchor.load(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Anchor.load(tmp_path)
