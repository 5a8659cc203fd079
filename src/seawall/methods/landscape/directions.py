"""Directions of weight space, streamed part by part: towards another checkpoint, of an adapter, and random.

At amount 1 a direction adds d to the weights W of the aligned model, in float32. Norms are Frobenius norms.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seawall.artifacts.landscape import DirectionKind
from seawall.errors import ArtifactError
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.stream import CheckpointOutline, Part, WeightReader, matrices, outline, reading
from seawall.models.lora.merge import WEIGHTS, adapter_factors
from seawall.models.lora.updates import LowRankUpdate
from seawall.runs.files import canonical_hash, file_hash

Norms = Mapping[Part, Mapping[str, Tensor]]
"""Norms of d by part of the checkpoint and tensor name: (), or (E, 1, 1) for a stack that is one part. Parts and
tensors where d is 0 are left out."""
Change = Callable[[Part, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(part, its weights W as stored) -> d of the part's changed tensors, float32."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction d.

    Attributes:
        name: key of the direction's amounts.
        kind: `aligned`, `tuned` or `random`.
        source: fingerprint of the weights that it was made from; the seed of a random direction.
        norms: of d.
        opened: context manager that gives a `Change`; files are open inside it.
    """

    name: str
    kind: DirectionKind
    source: str
    norms: Norms
    opened: Callable[[], AbstractContextManager[Change]]

    @property
    def norm(self) -> float:
        """Norm of the whole direction."""
        norms = (norm for tensors in self.norms.values() for norm in tensors.values())
        return float(sum(float(norm.double().square().sum()) for norm in norms) ** 0.5)

    @property
    def tensors(self) -> int:
        """Number of tensors that it changes."""
        return len({name for tensors in self.norms.values() for name in tensors})


class WeightDifference(NamedTuple):
    """Norms of the difference between the aligned checkpoint and another version, and that version's fingerprint."""

    norms: Norms
    fingerprint: str


def compare_weights(aligned: CheckpointOutline, version: CheckpointOutline) -> WeightDifference:
    """Reads both checkpoints once, one tensor or expert slice at a time.

    Raises:
        ArtifactError: they differ in architecture, shapes or file layout; equal weights; weights that are not finite;
            damaged files.
    """
    _require_same_model(aligned, version)
    norms: dict[Part, dict[str, Tensor]] = {}
    total, shapes = StreamedFingerprint(), version.shapes
    with reading(aligned) as aligned_reader, reading(version) as version_reader:
        for part in aligned.sources:
            theirs = version_reader.read(part)
            for name, tensor in theirs.items():
                total.add(name, tensor, shapes[name])
            changed = _changed_norms(aligned_reader.read(part), theirs)
            norms |= {part: changed} if changed else {}
    if not norms:
        raise ArtifactError(
            "the two checkpoints hold the same weights",
            got=f"{aligned.folder} and {version.folder}",
            expected="the model and another version of it: its base, or a fine-tuned one",
        )
    return WeightDifference(norms, total.value(version.aliases()))


def aligned_direction(aligned: CheckpointOutline, base: CheckpointOutline, *, name: str = "aligned") -> Direction:
    """d = W - W_base, the update of alignment; the base lies at amount -1.

    Raises:
        ArtifactError: as `compare_weights`.
    """
    norms, fingerprint = compare_weights(aligned, base)
    return Direction(name, "aligned", fingerprint, norms, lambda: _difference(base, norms, -1.0))


def tuned_direction(aligned: CheckpointOutline, tuned: CheckpointOutline, *, name: str = "tuned") -> Direction:
    """d = W_tuned - W, the update of fine-tuning; the fine-tuned model lies at amount 1.

    Raises:
        ArtifactError: as `compare_weights`.
    """
    norms, fingerprint = compare_weights(aligned, tuned)
    return Direction(name, "tuned", fingerprint, norms, lambda: _difference(tuned, norms, 1.0))


def adapter_direction(aligned: CheckpointOutline, folder: Path, *, name: str = "tuned") -> Direction:
    """d = scaling B A of every matrix that a LoRA adapter changes, formed one matrix or expert at a time.

    Args:
        aligned: the model that the adapter was trained on.
        folder: the adapter's folder.
        name: of the direction.

    Raises:
        SeawallError: as `seawall.models.lora.merge.adapter_factors`.
        ArtifactError: the update is zero or not finite.
    """
    # adapter_factors inserts modules into the model, so it gets a separate outline.
    updates = {update.name: update for update in adapter_factors(outline(aligned.folder).model, folder)}
    transposed = {name: matrix.transposed for name, matrix in matrices(aligned.model).items()}
    names_of = _names_by_part(aligned, updates.keys())

    def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        products = {name: updates[name].product(part.expert) for name in names_of[part]}
        return {name: product.mT if transposed.get(name, False) else product for name, product in products.items()}

    norms = {
        part: {name: _norm(updates[name].product(part.expert)) for name in names} for part, names in names_of.items()
    }
    direction = Direction(name, "tuned", _adapter_source(folder, updates.values()), norms, lambda: nullcontext(change))
    _require_length(direction, folder)
    return direction


def _adapter_source(folder: Path, updates: Iterable[LowRankUpdate]) -> str:
    """Hash of an adapter's weights and scalings."""
    scalings = {update.name: update.scaling for update in updates}
    return canonical_hash({"weights": file_hash(folder / WEIGHTS), "scalings": scalings})


def _require_length(direction: Direction, folder: Path) -> None:
    if not 0 < direction.norm < math.inf:
        raise ArtifactError(
            f"the adapter in {folder} gives no direction",
            got="zero updates" if direction.norm == 0 else "updates that are not finite",
            expected="a trained adapter",
            remedy="train it again, or leave landscape.adapter out",
        )


def random_direction(like: Direction, seed: int, *, name: str) -> Direction:
    """A Gaussian direction with the norm of another direction in every tensor and every expert.

    Args:
        like: the direction whose norms it takes; tensors outside that direction stay unchanged.
        seed: the same seed gives the same direction, on any device.
        name: of the direction.
    """

    def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {
            name: _drawn(f"{name}[{part.expert}]", own[name], norm, seed) for name, norm in like.norms[part].items()
        }

    return Direction(name, "random", f"seed {seed}", like.norms, lambda: nullcontext(change))


def _drawn(label: str, own: Tensor, norm: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + zlib.crc32(label.encode())) % 2**63)
    drawn = torch.randn(own.shape, generator=generator)
    return drawn * (norm / _norm(drawn))


@contextmanager
def _difference(version: CheckpointOutline, norms: Norms, sign: float) -> Iterator[Change]:
    """Gives sign * (W_version - W)."""
    with reading(version) as reader:

        def change(part: Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return _differences(reader, part, own, norms[part], sign)

        yield change


def _differences(
    reader: WeightReader, part: Part, own: Mapping[str, Tensor], names: Iterable[str], sign: float
) -> dict[str, Tensor]:
    theirs = reader.read(part)
    return {name: sign * (theirs[name].float() - own[name].float()) for name in names}


def _changed_norms(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norms of the non-zero differences."""
    norms = {}
    for name, tensor in own.items():
        if not tensor.is_floating_point():
            continue
        norm = _norm(theirs[name].float() - tensor.float())
        if not bool(norm.isfinite().all()):
            raise ArtifactError(
                f"the weights {name} are not finite",
                expected="finite weights in both checkpoints",
                remedy="copy or download the models again",
            )
        if bool((norm > 0).any()):
            norms[name] = norm
    return norms


def _norm(tensor: Tensor) -> Tensor:
    """Norm of a tensor (), or of each expert of a stack (E, 1, 1)."""
    stack = tensor.ndim > 2
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=(-2, -1) if stack else None, keepdim=stack)
    return norm


def _names_by_part(aligned: CheckpointOutline, changed: Set[str]) -> dict[Part, list[str]]:
    """The parts that hold the tensors in `changed`, with their names."""
    holders: dict[Part, list[str]] = {}
    with reading(aligned) as reader:
        for part in aligned.sources:
            names = [*reader.read(part)] if aligned.cut(part) else [part.name]
            if inside := [name for name in names if name in changed]:
                holders[part] = inside
    missing = changed - {name for names in holders.values() for name in names}
    if missing:
        raise ArtifactError(
            f"the adapter changes {min(missing)}, which has no tensor of this name in {aligned.folder}",
            expected="LoRA of matrices that are stored as their own tensors",
            remedy="merge the adapter, and name the merged checkpoint instead",
        )
    return holders


def _require_same_model(aligned: CheckpointOutline, version: CheckpointOutline) -> None:
    families = [side.model.config.model_type for side in (aligned, version)]
    if families[0] != families[1]:
        raise _different(version, "the model_type of config.json differs", families[1], families[0])
    ours, theirs = aligned.shapes, version.shapes
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            sides = [str(side.get(name, "no such tensor")) for side in (theirs, ours)]
            raise _different(version, f"{name} differs", sides[0], sides[1])
    if aligned.sources.keys() != version.sources.keys():
        part = min(aligned.sources.keys() ^ version.sources.keys(), key=str)
        raise _different(version, f"{part.name} is stored in another layout", "other parts", "the same parts")


def _different(version: CheckpointOutline, what: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{version.folder} is not a version of this model: {what}",
        got=got,
        expected=f"{expected} as in the model",
        remedy="name the base of the model, or a fine-tuned version of it",
    )
