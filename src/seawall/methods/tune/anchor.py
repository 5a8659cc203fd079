"""The alignment directions of a model, from an aligned and a base checkpoint: AsFT (arXiv 2506.08473), section 3."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from seawall.artifacts.anchor import Anchor, AnchorMatrix, TokenizerFacts
from seawall.config.anchor import AnchorConfig
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.tune.spectrum import Directions, leading_directions
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.open import Checkpoint
from seawall.models.files.stream import CheckpointOutline, Matrix, Part, WeightReader, matrices, reading
from seawall.runs.files import canonical_hash
from seawall.shell.model import open_checkpoint

_Found = dict[Part, Directions]


def extract_anchor(config: AnchorConfig) -> Anchor:
    """The anchor of an aligned model; either model may also be `lab` or `lab-original`.

    Both checkpoints are read once, a tensor or an expert's slice at a time; what is in memory at most is one of each,
    their difference, and the anchor so far.

    Raises:
        ConfigError: no such model; targets that it does not have.
        UnsupportedModelError: no causal language model, no safetensors, or quantised weights.
        ArtifactError: damaged or missing files; checkpoints that differ in architecture, shapes or tokenizers.
    """
    return anchor_between(open_checkpoint(config.aligned), open_checkpoint(config.base), config)


def anchor_between(aligned: Checkpoint, base: Checkpoint, config: AnchorConfig) -> Anchor:
    """`extract_anchor` of checkpoints that are open already.

    Raises:
        SeawallError: as `extract_anchor`.
    """
    wanted = _wanted(matrices(aligned.outline.model), config.targets)
    _require_same_model(aligned.outline, base.outline, wanted)
    tokenizer = compare_tokenizers(aligned, base)
    found, fingerprints = _directions(aligned.outline, base.outline, wanted, config)
    if not any(len(one.singular_values) for one in found.values()):
        raise ArtifactError(
            "the two checkpoints hold the same weights in every matrix",
            got=f"{aligned.folder} and {base.folder}",
            expected="an aligned model and the base that it was made from",
        )
    kept = {name: _matrix(name, one, found) for name, one in wanted.items()}
    return Anchor(aligned=fingerprints[0], base=fingerprints[1], tokenizer=tokenizer, matrices=kept)


def describe(anchor: Anchor) -> str:
    """One line for people, such as `64 matrices, 2 without a difference, 0 spanned whole, 41% of the energy, 67.1 MB`.

    The energy is the mean over the matrices that have a difference.
    """
    energies = torch.cat([one.energies.reshape(-1) for one in anchor.matrices.values()])
    moved = torch.cat([one.norm.reshape(-1) for one in anchor.matrices.values()]) > 0
    return (
        f"{len(energies)} matrices, {len(anchor.unchanged)} without a difference, "
        f"{len(anchor.spanning)} spanned whole, "
        f"{float(energies[moved].mean()):.0%} of the energy, {anchor.bytes / 1e6:.1f} MB"
    )


def compare_tokenizers(aligned: Checkpoint, base: Checkpoint) -> TokenizerFacts:
    """The vocabularies of two models, when every token of the base has the same id in the aligned model.

    Raises:
        UnsupportedModelError: one has no tokenizer.
        ArtifactError: a token has another id, or none; names one.
    """
    ours, theirs = (checkpoint.tokenizer.get_vocab() for checkpoint in (aligned, base))
    moved = min((token for token, index in theirs.items() if ours.get(token) != index), default=None)
    if moved is not None:
        raise ArtifactError(
            f"the tokenizers of {aligned.id} and {base.id} disagree",
            got=f"token {moved!r} with the ids {ours.get(moved, 'none')} and {theirs[moved]}",
            expected="the same id for every token of the base",
            remedy="name the base that the aligned model was made from",
        )
    return TokenizerFacts(canonical_hash(theirs), canonical_hash(ours), len(theirs), len(ours))


def _wanted(found: Mapping[str, Matrix], targets: tuple[str, ...] | None) -> dict[str, Matrix]:
    """The matrices that an anchor is asked for."""
    if targets is None:
        return dict(found)
    for target in targets:
        if not any(_named(name, target) for name in found):
            ends = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in found})
            raise ConfigError(
                f"the model has no weight matrix {target}",
                got=f"targets {', '.join(targets)}",
                expected=f"some of {', '.join(ends)}",
            )
    return {name: one for name, one in found.items() if any(_named(name, target) for target in targets)}


def _named(name: str, target: str) -> bool:
    return any(one == target or one.endswith(f".{target}") for one in (name, name.removesuffix(".weight")))


def _require_same_model(aligned: CheckpointOutline, base: CheckpointOutline, wanted: Mapping[str, Matrix]) -> None:
    families = [side.model.config.model_type for side in (aligned, base)]
    if families[0] != families[1]:
        raise _different("the model_type of config.json differs", families[0], families[1])
    other = matrices(base.model)
    for name, one in wanted.items():
        if other.get(name) != one:
            theirs = other[name].shape if name in other else "no such matrix"
            raise _different(f"{name} differs", str(one.shape), str(theirs))
    parts = [{part for part in side.sources if part.name in wanted} for side in (aligned, base)]
    if parts[0] != parts[1]:
        part = min(parts[0] ^ parts[1], key=str)
        forms = ["a whole" if (part in side) == (part.expert is None) else "experts" for side in parts]
        raise _different(f"{part.name} is cut in different ways on disk", forms[0], forms[1])


def _different(what: str, aligned: str, base: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoints are of different models: {what}",
        got=f"{aligned} in the aligned model, {base} in the base",
        expected="two checkpoints of one architecture",
        remedy="name the base that the aligned model was made from",
    )


class _Side:
    """One of the two checkpoints while it is read: its reader and its fingerprint so far."""

    def __init__(self, outline: CheckpointOutline, reader: WeightReader) -> None:
        self._outline, self._reader = outline, reader
        self._shapes, self._sum = outline.shapes, StreamedFingerprint()
        self._left = set(outline.sources)

    def read(self, part: Part) -> dict[str, Tensor]:
        self._left.remove(part)
        made = self._reader.read(part)
        for name, tensor in made.items():
            self._sum.add(name, tensor, self._shapes[name])
        return made

    def finish(self) -> str:
        """Read what is left; the fingerprint of all."""
        for part in self._outline.sources:
            if part in self._left:
                self.read(part)
        return self._sum.value(self._outline.aliases())


def _directions(
    aligned: CheckpointOutline, base: CheckpointOutline, wanted: Mapping[str, Matrix], config: AnchorConfig
) -> tuple[_Found, tuple[str, str]]:
    """The directions of every matrix, and both fingerprints, in one pass over the files."""
    found: _Found = {}
    with reading(aligned) as left, reading(base) as right:
        sides = _Side(aligned, left), _Side(base, right)
        for part in aligned.sources:
            if part in base.sources and (part.name in wanted or aligned.cut(part)):
                found |= _part_directions(part, sides, wanted, config)
        return found, (sides[0].finish(), sides[1].finish())


def _part_directions(
    part: Part, sides: tuple[_Side, _Side], wanted: Mapping[str, Matrix], config: AnchorConfig
) -> _Found:
    """The directions of what is read at once; nothing of it stays in memory."""
    ours, theirs = sides[0].read(part), sides[1].read(part)
    found: _Found = {}
    for name in sorted(ours.keys() & wanted.keys()):
        difference = _difference(name, ours.pop(name), theirs.pop(name))
        if part.expert is None and difference.ndim == 3:
            slices = {Part(name, expert): one for expert, one in enumerate(difference)}
        else:
            slices = {Part(name, part.expert): difference}
        found |= {place: _decompose(one, place, wanted[name], config) for place, one in slices.items()}
    return found


def _difference(name: str, aligned: Tensor, base: Tensor) -> Tensor:
    difference = aligned.to(torch.float32)
    difference.sub_(base)
    if not bool(torch.linalg.vector_norm(difference, dim=-1).isfinite().all()):  # makes no copy of the whole
        raise ArtifactError(
            f"the weights {name} hold numbers that are not finite",
            expected="finite weights in both checkpoints",
            remedy="copy or download the models again",
        )
    return difference


def _decompose(difference: Tensor, part: Part, matrix: Matrix, config: AnchorConfig) -> Directions:
    seed = config.seed + zlib.crc32(f"{part.name}[{part.expert}]".encode())
    generator = torch.Generator(difference.device).manual_seed(seed % 2**63)
    turned = difference.mT if matrix.transposed else difference
    return leading_directions(turned, rank=config.rank, energy=config.energy, generator=generator)


def _matrix(name: str, matrix: Matrix, found: _Found) -> AnchorMatrix:
    """The directions of a matrix; those of a stack's experts are put together, padded with zeros to equal numbers."""
    experts = [None] if len(matrix.shape) == 2 else range(matrix.shape[0])
    slices = [found[Part(name, expert)] for expert in experts]
    width = max(len(one.singular_values) for one in slices)
    pad = torch.nn.functional.pad
    basis = torch.stack([pad(one.basis, (0, width - one.basis.shape[1])) for one in slices])
    values = torch.stack([pad(one.singular_values, (0, width - len(one.singular_values))) for one in slices])
    norm = torch.stack([one.norm for one in slices])
    if len(matrix.shape) == 2:
        basis, values, norm = basis[0], values[0], norm[0]
    columns = matrix.shape[-2] if matrix.transposed else matrix.shape[-1]
    return AnchorMatrix(basis, values, norm, columns=columns, transposed=matrix.transposed)
