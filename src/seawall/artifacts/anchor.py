"""The anchor: the directions in which alignment moved each weight matrix, from an aligned and a base checkpoint.

For every weight matrix W (rows x columns; its output is W x) the difference V = W_aligned - W_base has the thin
singular value decomposition U S Z^T. The anchor holds the leading columns of U, an orthonormal basis of the output
directions that alignment changed, and their singular values. AsFT, arXiv 2506.08473, section 3.

On disk it is `anchor.safetensors` (`basis`, `singular_values` and `norm` of every matrix) and `anchor.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seawall.artifacts.store import (
    load_parts,
    parse_fields,
    record_document,
    record_tensors,
    require,
    require_model,
    save_parts,
)

NAME = "anchor"
_PARTS = ("basis", "singular_values", "norm")
_ORTHONORMAL = 1e-3
_Condition = Callable[["AnchorMatrix"], Tensor]


class TokenizerFacts(NamedTuple):
    """Hashes and sizes of the two vocabularies; every token of the base has the same id in the aligned model."""

    base: str
    aligned: str
    base_tokens: int
    aligned_tokens: int


@dataclass(frozen=True, eq=False)
class AnchorMatrix:
    """The alignment directions of one weight matrix, or of a stack of E expert matrices (then `...` is E).

    Attributes:
        basis: U (..., rows, k), float32, orthonormal columns; a slice of lower rank has zero columns at the end.
        singular_values: S (..., k), descending; zero for zero columns.
        norm: Frobenius norm of the full difference V (...).
        columns: width of W; its height is `rows`.
        transposed: whether the model stores W^T.
    """

    basis: Tensor
    singular_values: Tensor
    norm: Tensor
    columns: int
    transposed: bool

    @property
    def rows(self) -> int:
        """Height of W, the size of its output."""
        return self.basis.shape[-2]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the parameter in the model, with stack and orientation."""
        sides = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        return (*self.basis.shape[:-2], *sides)

    @property
    def ranks(self) -> Tensor:
        """Number of directions (...)."""
        return (self.singular_values > 0).sum(-1)

    @property
    def energies(self) -> Tensor:
        """Share of the difference's squared norm in these directions (...); 1 without a difference."""
        total = self.norm.double().square()
        spanned = self.singular_values.double().square().sum(-1)
        return torch.where(total > 0, spanned / total.clamp_min(torch.finfo(torch.float64).tiny), 1.0)


@dataclass(frozen=True, eq=False)
class Anchor:
    """The alignment directions of a model's weight matrices.

    Attributes:
        aligned: fingerprint of the aligned checkpoint's weights.
        base: fingerprint of the base checkpoint's weights.
        tokenizer: how the two tokenizers compare.
        matrices: by the parameter's name in the model's state dict.
    """

    aligned: str
    base: str
    tokenizer: TokenizerFacts
    matrices: Mapping[str, AnchorMatrix]

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Matrices without a difference; one of a stack is `NAME[EXPERT]`."""
        return self._where(lambda matrix: matrix.ranks == 0)

    @property
    def spanning(self) -> tuple[str, ...]:
        """Matrices whose basis spans the full output: no update of these is penalised."""
        return self._where(lambda matrix: matrix.ranks == matrix.rows)

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        parts = (getattr(matrix, part) for matrix in self.matrices.values() for part in _PARTS)
        return sum(tensor.numel() * tensor.element_size() for tensor in parts)

    def require_model(self, fingerprint: str) -> None:
        """Refuse a model that is not the aligned one.

        Raises:
            ArtifactError: the fingerprints differ; names both.
        """
        require_model(self.aligned, expected=fingerprint, artifact="anchor")

    def save(self, folder: Path) -> None:
        """Write `anchor.safetensors` and `anchor.json`.

        Matrices are records with tensors under the names of a mapping, the only ones: written here, not in the store.
        """
        shapes = {name: record_document(matrix) for name, matrix in self.matrices.items()}
        tensors = {
            f"{name}:{part}": tensor
            for name, matrix in self.matrices.items()
            for part, tensor in record_tensors(matrix).items()
        }
        save_parts(folder / f"{NAME}.json", NAME, {**record_document(self), "matrices": shapes}, tensors)

    @classmethod
    def load(cls, folder: Path) -> Anchor:
        """Read `anchor.safetensors` and `anchor.json`.

        Raises:
            ArtifactError: a file is missing or damaged, or parts contradict each other.
        """
        path = folder / f"{NAME}.json"
        document, tensors = load_parts(path, NAME)
        shapes = document.pop("matrices", None)
        require(isinstance(shapes, dict), path, "matrices by name")
        expected = {f"{name}:{part}" for name in shapes for part in _PARTS}
        require(set(tensors) == expected, path, f"{', '.join(_PARTS)} of every matrix that it lists")
        matrices = {}
        for name, shape in shapes.items():
            parts = {part: tensors[f"{name}:{part}"] for part in _PARTS}
            _require_basis(path, name, parts)
            matrices[name] = AnchorMatrix(**parse_fields(path, shape, AnchorMatrix) | parts)
        return cls(**parse_fields(path, document, cls), matrices=matrices)

    def _where(self, condition: _Condition) -> tuple[str, ...]:
        names: list[str] = []
        for name, matrix in self.matrices.items():
            holds = condition(matrix)
            slices = [name] if holds.ndim == 0 else [f"{name}[{expert}]" for expert in range(len(holds))]
            names += [entry for entry, value in zip(slices, holds.reshape(-1).tolist(), strict=True) if value]
        return tuple(names)


def _require_basis(path: Path, name: str, parts: Mapping[str, Tensor]) -> None:
    basis, values, norm = (parts[part] for part in _PARTS)
    require(all(tensor.dtype == torch.float32 for tensor in parts.values()), path, f"{name} in float32")
    require(basis.ndim in (2, 3), path, f"a matrix, or a stack of matrices, at {name}")
    fits = values.shape == (*basis.shape[:-2], basis.shape[-1]) and norm.shape == basis.shape[:-2]
    require(fits, path, f"a singular value for every column at {name}, and one norm")
    finite = all(bool(tensor.isfinite().all()) for tensor in parts.values())
    descending = bool((values.diff(dim=-1) <= 0).all()) and bool((values >= 0).all())
    require(finite and descending, path, f"finite numbers and descending singular values at {name}")
    gram = basis.mT @ basis
    error = (gram - torch.diag_embed((values > 0).to(basis.dtype))).abs().amax() if gram.numel() else torch.zeros(())
    require(float(error) < _ORTHONORMAL, path, f"an orthonormal basis at {name}")
