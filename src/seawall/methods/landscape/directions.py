"""Directions of weight space, read part by part: to another checkpoint, of an adapter, and random ones.

At amount 1 a direction adds d to the weights W of the aligned model, all in float32. Norms are Frobenius norms.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from seawall.errors import ArtifactError
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.stream import CheckpointOutline, Part, WeightReader, matrices, outline, reading
from seawall.models.lora.merge import WEIGHTS, adapter_factors
from seawall.models.lora.updates import LowRankUpdate
from seawall.runs.files import canonical_hash, file_hash

Kind = Literal["aligned", "tuned", "random"]
Norms = Mapping[Part, Mapping[str, Tensor]]
"""Of d, by the part of the checkpoint and the names of the tensors in it: (), or (E, 1, 1) of a stack that is one part.
Parts and tensors that d leaves alone are not in it."""
Change = Callable[[Part, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""d of a part, float32, of those of its tensors that d changes; it is given W of that part as the files hold it."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction d.

    Attributes:
        name: how amounts name it.
        kind: what it is.
        source: fingerprint of the weights that it was made from; the seed of a random one.
        norms: of d.
        opened: a context manager that gives a `Change`; files are open inside it.
    """

    name: str
    kind: Kind
    source: str
    norms: Norms
    opened: Callable[[], AbstractContextManager[Change]]

    @property
    def norm(self) -> float:
        """Of the whole direction."""
        every = (norm for tensors in self.norms.values() for norm in tensors.values())
        return float(sum(float(norm.double().square().sum()) for norm in every) ** 0.5)

    @property
    def tensors(self) -> int:
        """How many of the model's tensors it changes."""
        return len({name for tensors in self.norms.values() for name in tensors})


class Survey(NamedTuple):
    """How another checkpoint differs from the aligned one: norms of the difference, and the other's fingerprint."""

    norms: Norms
    fingerprint: str


def survey(aligned: CheckpointOutline, other: CheckpointOutline) -> Survey:
    """Reads both checkpoints once, a tensor or an expert's slice at a time.

    Raises:
        ArtifactError: they differ in architecture, shapes or cut; equal weights; numbers that are not finite; damage.
    """
    _require_same_model(aligned, other)
    norms: dict[Part, dict[str, Tensor]] = {}
    total, shapes = StreamedFingerprint(), other.shapes
    with reading(aligned) as left, reading(other) as right:
        for part in aligned.sources:
            theirs = right.read(part)
            for name, tensor in theirs.items():
                total.add(name, tensor, shapes[name])
            found = _changed(left.read(part), theirs)
            norms |= {part: found} if found else {}
    if not norms:
        raise ArtifactError(
            "the two checkpoints hold the same weights",
            got=f"{aligned.folder} and {other.folder}",
            expected="the model and another version of it: its base, or a fine-tuned one",
        )
    return Survey(norms, total.value(other.aliases()))


def aligned_direction(aligned: CheckpointOutline, base: CheckpointOutline, *, name: str = "aligned") -> Direction:
    """d = W - W_base: what alignment added; the base lies at amount -1.

    Raises:
        ArtifactError: as `survey`.
    """
    found = survey(aligned, base)
    return Direction(name, "aligned", found.fingerprint, found.norms, lambda: _difference(base, found.norms, -1.0))


def tuned_direction(aligned: CheckpointOutline, tuned: CheckpointOutline, *, name: str = "tuned") -> Direction:
    """d = W_tuned - W: what fine-tuning added; the fine-tuned model lies at amount 1.

    Raises:
        ArtifactError: as `survey`.
    """
    found = survey(aligned, tuned)
    return Direction(name, "tuned", found.fingerprint, found.norms, lambda: _difference(tuned, found.norms, 1.0))


def adapter_direction(aligned: CheckpointOutline, folder: Path, *, name: str = "tuned") -> Direction:
    """d = scaling B A of every matrix that a LoRA adapter changes, which is formed a matrix or an expert at a time.

    Args:
        aligned: the model that the adapter was trained on.
        folder: the adapter's.
        name: of the direction.

    Raises:
        SeawallError: as `seawall.models.lora.merge.adapter_factors`.
        ArtifactError: it changes nothing, or holds numbers that are not finite.
    """
    # The adapter's modules are put into the model, so it needs a model of its own.
    updates = {one.name: one for one in adapter_factors(outline(aligned.folder).model, folder)}
    transposed = {found: one.transposed for found, one in matrices(aligned.model).items()}
    places = _places(aligned, updates.keys())

    def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        products = {name: _product(updates[name], part.expert) for name in places[part]}
        return {name: one.mT if transposed.get(name, False) else one for name, one in products.items()}

    norms = {
        part: {name: _norm(_product(updates[name], part.expert)) for name in names} for part, names in places.items()
    }
    found = Direction(name, "tuned", _adapter_source(folder, updates.values()), norms, lambda: nullcontext(change))
    _require_length(found, folder)
    return found


def _adapter_source(folder: Path, updates: Iterable[LowRankUpdate]) -> str:
    """Of an adapter's weights, and of the factors by which its settings scale them."""
    scalings = {one.name: one.scaling for one in updates}
    return canonical_hash({"weights": file_hash(folder / WEIGHTS), "scalings": scalings})


def _require_length(found: Direction, folder: Path) -> None:
    if not 0 < found.norm < math.inf:
        raise ArtifactError(
            f"the adapter in {folder} is no direction",
            got="updates that are zero" if found.norm == 0 else "numbers that are not finite",
            expected="a trained adapter",
            remedy="train it again, or leave landscape.adapter out",
        )


def random_direction(like: Direction, seed: int, *, name: str) -> Direction:
    """A Gaussian direction that is as long as another one in every tensor and every expert, and zero where that is.

    Args:
        like: which.
        seed: the same seed gives the same direction, on any device.
        name: of the direction.
    """

    def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {at: _drawn(f"{at}[{part.expert}]", own[at], norm, seed) for at, norm in like.norms[part].items()}

    return Direction(name, "random", f"seed {seed}", like.norms, lambda: nullcontext(change))


def _drawn(label: str, own: Tensor, norm: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + zlib.crc32(label.encode())) % 2**63)
    drawn = torch.randn(own.shape, generator=generator)
    return drawn * (norm / _norm(drawn))


@contextmanager
def _difference(other: CheckpointOutline, norms: Norms, sign: float) -> Iterator[Change]:
    """Gives sign * (W_other - W)."""
    with reading(other) as reader:

        def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return _differences(reader, part, own, norms[part], sign)

        yield change


def _differences(
    reader: WeightReader, part: Part, own: Mapping[str, Tensor], names: Iterable[str], sign: float
) -> dict[str, Tensor]:
    theirs = reader.read(part)
    return {name: sign * (theirs[name].float() - own[name].float()) for name in names}


def _changed(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norms of those differences that are not zero."""
    found = {}
    for name, tensor in own.items():
        if not tensor.is_floating_point():
            continue
        norm = _norm(theirs[name].float() - tensor.float())
        if not bool(norm.isfinite().all()):
            raise ArtifactError(
                f"the weights {name} hold numbers that are not finite",
                expected="finite weights in both checkpoints",
                remedy="copy or download the models again",
            )
        if bool((norm > 0).any()):
            found[name] = norm
    return found


def _norm(tensor: Tensor) -> Tensor:
    """Of a tensor (), or of every expert of a stack (E, 1, 1)."""
    stack = tensor.ndim > 2
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=(-2, -1) if stack else None, keepdim=stack)
    return norm


def _places(aligned: CheckpointOutline, wanted: Set[str]) -> dict[Part, list[str]]:
    """The parts that hold these tensors, each with those it holds."""
    found: dict[Part, list[str]] = {}
    with reading(aligned) as reader:
        for part in aligned.sources:
            names = [*reader.read(part)] if aligned.cut(part) else [part.name]
            if kept := [name for name in names if name in wanted]:
                found[part] = kept
    lacking = wanted - {name for names in found.values() for name in names}
    if lacking:
        raise ArtifactError(
            f"the adapter changes {min(lacking)}, which {aligned.folder} does not hold under this name",
            expected="LoRA of matrices with weights of their own",
            remedy="merge it, and name the merged checkpoint instead",
        )
    return found


def _product(update: LowRankUpdate, expert: int | None) -> Tensor:
    B, A = (factor.detach().float() for factor in update.factors())
    if expert is not None:
        B, A = B[expert], A[expert]
    return update.scaling * (B @ A)


def _require_same_model(aligned: CheckpointOutline, other: CheckpointOutline) -> None:
    families = [side.model.config.model_type for side in (aligned, other)]
    if families[0] != families[1]:
        raise _different(other, "the model_type of config.json differs", families[1], families[0])
    ours, theirs = aligned.shapes, other.shapes
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            sides = [str(side.get(name, "no such tensor")) for side in (theirs, ours)]
            raise _different(other, f"{name} differs", sides[0], sides[1])
    if aligned.sources.keys() != other.sources.keys():
        part = min(aligned.sources.keys() ^ other.sources.keys(), key=str)
        raise _different(other, f"{part.name} is cut in different ways on disk", "other parts", "the same parts")


def _different(other: CheckpointOutline, what: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{other.folder} is no version of this model: {what}",
        got=got,
        expected=f"{expected} as in the model",
        remedy="name the base that it was aligned from, or a model that was fine-tuned from it",
    )
