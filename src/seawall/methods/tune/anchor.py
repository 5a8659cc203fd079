"""The anchor: the alignment directions of a model, from V = W_aligned - W_base. AsFT (arXiv 2506.08473), section 3."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from seawall.artifacts.anchor import Anchor, AnchorMatrix, TokenizerFacts
from seawall.config.anchor import AnchorConfig
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.tune.spectrum import LeadingDirections, leading_directions
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.open import Checkpoint
from seawall.models.files.stream import CheckpointOutline, Matrix, Part, WeightReader, matrices, reading
from seawall.runs.files import canonical_hash
from seawall.shell.model import open_checkpoint

_Decompositions = dict[Part, LeadingDirections]


def extract_anchor(config: AnchorConfig) -> Anchor:
    """The anchor of an aligned model; either model may also be `lab` or `lab-original`.

    Both checkpoints are read once, one tensor or expert slice at a time; memory holds one of each, their difference,
    and the anchor.

    Raises:
        ConfigError: no such model, or no matrix of a target's name.
        UnsupportedModelError: no causal language model, no safetensors, or quantised weights.
        ArtifactError: damaged or missing files; checkpoints that differ in architecture, shapes or tokenizers.
    """
    return anchor_between(open_checkpoint(config.aligned), open_checkpoint(config.base), config)


def anchor_between(aligned: Checkpoint, base: Checkpoint, config: AnchorConfig) -> Anchor:
    """`extract_anchor` for open checkpoints.

    Raises:
        SeawallError: as `extract_anchor`.
    """
    selected = _select(matrices(aligned.outline.model), config.targets)
    require_same_model(aligned.outline, base.outline, selected)
    tokenizer = compare_tokenizers(aligned, base)
    directions, fingerprints = _directions(aligned.outline, base.outline, selected, config)
    if not any(len(decomposition.singular_values) for decomposition in directions.values()):
        raise ArtifactError(
            "the two checkpoints hold the same weights in every matrix",
            got=f"{aligned.folder} and {base.folder}",
            expected="an aligned model and its base",
        )
    anchored = {name: _matrix(name, matrix, directions) for name, matrix in selected.items()}
    return Anchor(aligned=fingerprints[0], base=fingerprints[1], tokenizer=tokenizer, matrices=anchored)


def describe(anchor: Anchor) -> str:
    """One line for people, such as `64 matrices, 2 without a difference, 0 fully spanned, 41% of the energy, 67.1 MB`.

    The energy is the mean over the matrices with a difference.
    """
    energies = torch.cat([matrix.energies.reshape(-1) for matrix in anchor.matrices.values()])
    changed = torch.cat([matrix.norm.reshape(-1) for matrix in anchor.matrices.values()]) > 0
    return (
        f"{len(energies)} matrices, {len(anchor.unchanged)} without a difference, "
        f"{len(anchor.spanning)} fully spanned, "
        f"{float(energies[changed].mean()):.0%} of the energy, {anchor.bytes / 1e6:.1f} MB"
    )


def compare_tokenizers(aligned: Checkpoint, base: Checkpoint) -> TokenizerFacts:
    """Both vocabularies; every token of the base must have the same id in the aligned model.

    Raises:
        UnsupportedModelError: a model has no tokenizer.
        ArtifactError: a token has another id, or none; the message names one.
    """
    ours, theirs = (checkpoint.tokenizer.get_vocab() for checkpoint in (aligned, base))
    differing = min((token for token, index in theirs.items() if ours.get(token) != index), default=None)
    if differing is not None:
        raise ArtifactError(
            f"the tokenizers of {aligned.id} and {base.id} disagree",
            got=f"token {differing!r} with the ids {ours.get(differing, 'none')} and {theirs[differing]}",
            expected="the same id for every token of the base",
            remedy="name the base of the aligned model",
        )
    return TokenizerFacts(canonical_hash(theirs), canonical_hash(ours), len(theirs), len(ours))


def _select(available: Mapping[str, Matrix], targets: tuple[str, ...] | None) -> dict[str, Matrix]:
    """The matrices whose name ends in a target; all of them for None."""
    if targets is None:
        return dict(available)
    for target in targets:
        if not any(_named(name, target) for name in available):
            ends = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in available})
            raise ConfigError(
                f"the model has no weight matrix {target}",
                got=f"targets {', '.join(targets)}",
                expected=f"some of {', '.join(ends)}",
            )
    return {name: matrix for name, matrix in available.items() if any(_named(name, target) for target in targets)}


def _named(name: str, target: str) -> bool:
    return any(
        candidate == target or candidate.endswith(f".{target}") for candidate in (name, name.removesuffix(".weight"))
    )


def require_same_model(aligned: CheckpointOutline, base: CheckpointOutline, selected: Mapping[str, Matrix]) -> None:
    """Refuse two checkpoints that differ in family, in the shape of a selected matrix, or in its layout on disk.

    Raises:
        ArtifactError: they do; names the first difference.
    """
    families = [side.model.config.model_type for side in (aligned, base)]
    if families[0] != families[1]:
        raise _different("the model_type of config.json differs", families[0], families[1])
    base_matrices = matrices(base.model)
    for name, matrix in selected.items():
        if base_matrices.get(name) != matrix:
            theirs = base_matrices[name].shape if name in base_matrices else "no such matrix"
            raise _different(f"{name} differs", str(matrix.shape), str(theirs))
    parts = [{part for part in side.sources if part.name in selected} for side in (aligned, base)]
    if parts[0] != parts[1]:
        part = min(parts[0] ^ parts[1], key=str)
        forms = ["one tensor" if (part in side) == (part.expert is None) else "experts" for side in parts]
        raise _different(f"{part.name} is stored in different layouts", forms[0], forms[1])


def _different(what: str, aligned: str, base: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoints are of different models: {what}",
        got=f"{aligned} in the aligned model, {base} in the base",
        expected="two checkpoints of one architecture",
        remedy="name the base of the aligned model",
    )


class _FingerprintedReader:
    """Reads a checkpoint part by part and computes its fingerprint on the way."""

    def __init__(self, outline: CheckpointOutline, reader: WeightReader) -> None:
        self._outline, self._reader = outline, reader
        self._shapes, self._sum = outline.shapes, StreamedFingerprint()
        self._unread = set(outline.sources)

    def read(self, part: Part) -> dict[str, Tensor]:
        self._unread.remove(part)
        tensors = self._reader.read(part)
        for name, tensor in tensors.items():
            self._sum.add(name, tensor, self._shapes[name])
        return tensors

    def finish(self) -> str:
        """Reads the remaining parts and returns the fingerprint."""
        for part in self._outline.sources:
            if part in self._unread:
                self.read(part)
        return self._sum.value(self._outline.aliases())


def _directions(
    aligned: CheckpointOutline, base: CheckpointOutline, selected: Mapping[str, Matrix], config: AnchorConfig
) -> tuple[_Decompositions, tuple[str, str]]:
    """The directions of every matrix, and both fingerprints, in one pass over the files."""
    directions: _Decompositions = {}
    with reading(aligned) as aligned_reader, reading(base) as base_reader:
        sides = _FingerprintedReader(aligned, aligned_reader), _FingerprintedReader(base, base_reader)
        for part in aligned.sources:
            if part in base.sources and (part.name in selected or aligned.cut(part)):
                directions |= _part_directions(part, sides, selected, config)
        return directions, (sides[0].finish(), sides[1].finish())


def _part_directions(
    part: Part,
    sides: tuple[_FingerprintedReader, _FingerprintedReader],
    selected: Mapping[str, Matrix],
    config: AnchorConfig,
) -> _Decompositions:
    """The directions of one part of the files; its weights are freed on return."""
    ours, theirs = sides[0].read(part), sides[1].read(part)
    directions: _Decompositions = {}
    for name in sorted(ours.keys() & selected.keys()):
        V = difference(name, ours.pop(name), theirs.pop(name))
        if part.expert is None and V.ndim == 3:
            slices = {Part(name, expert): matrix for expert, matrix in enumerate(V)}
        else:
            slices = {Part(name, part.expert): V}
        directions |= {piece: _decompose(matrix, piece, selected[name], config) for piece, matrix in slices.items()}
    return directions


def difference(name: str, aligned: Tensor, base: Tensor) -> Tensor:
    """V = W_aligned - W_base in float32; overwrites `aligned` where that is float32.

    Raises:
        ArtifactError: it is not finite.
    """
    V = aligned.to(torch.float32)
    V.sub_(base)
    if not bool(torch.linalg.vector_norm(V, dim=-1).isfinite().all()):  # needs no copy of the matrix
        raise ArtifactError(
            f"the weights {name} are not finite",
            expected="finite weights in both checkpoints",
            remedy="copy or download the models again",
        )
    return V


def _decompose(V: Tensor, part: Part, matrix: Matrix, config: AnchorConfig) -> LeadingDirections:
    seed = config.seed + zlib.crc32(f"{part.name}[{part.expert}]".encode())
    generator = torch.Generator(V.device).manual_seed(seed % 2**63)
    turned = V.mT if matrix.transposed else V
    return leading_directions(turned, rank=config.rank, energy=config.energy, generator=generator)


def _matrix(name: str, matrix: Matrix, directions: _Decompositions) -> AnchorMatrix:
    """The directions of a matrix; those of a stack's experts are stacked, padded with zeros to one number."""
    experts = [None] if len(matrix.shape) == 2 else range(matrix.shape[0])
    slices = [directions[Part(name, expert)] for expert in experts]
    width = max(len(piece.singular_values) for piece in slices)
    pad = torch.nn.functional.pad
    basis = torch.stack([pad(piece.basis, (0, width - piece.basis.shape[1])) for piece in slices])
    values = torch.stack([pad(piece.singular_values, (0, width - len(piece.singular_values))) for piece in slices])
    norm = torch.stack([piece.norm for piece in slices])
    if len(matrix.shape) == 2:
        basis, values, norm = basis[0], values[0], norm[0]
    columns = matrix.shape[-2] if matrix.transposed else matrix.shape[-1]
    return AnchorMatrix(basis, values, norm, columns=columns, transposed=matrix.transposed)
