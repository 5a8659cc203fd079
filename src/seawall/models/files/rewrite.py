"""Writes a checkpoint with updates added to some of its weights, file by file; the model is never loaded.

Updates are named and stacked as in memory, while the files may name and split tensors differently. The mapping from
file positions to model positions comes from the converter that loading uses: it converts a tensor of position numbers.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seawall.artifacts.delta import flipped
from seawall.disk import leads_out
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.checkpoint import HASHES_FILE, read_headers, weight_files
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.load import library_errors
from seawall.models.files.save import write_hashes
from seawall.models.files.stream import CheckpointOutline, Part, reading

Change = Callable[[str, int | None], Tensor]
"""(parameter, expert of a stack or None) -> the update, in the parameter's layout: float32, or bits as integers."""
Progress = Callable[[int, int], None]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")


def add_to_checkpoint(
    outline: CheckpointOutline,
    names: frozenset[str],
    change: Change,
    output: Path,
    *,
    originals: Path | None,
    unchanged: Collection[tuple[str, int]] = (),
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Writes the checkpoint with `change` added to the parameters `names`; sums are rounded to the stored type.

    An update of integers is a change of bits (`seawall.artifacts.delta`): XORed onto the stored ones.

    Memory holds the tensors of one file and the update of one part.

    Args:
        outline: the checkpoint.
        names: the parameters that change.
        change: gives their updates.
        output: an empty folder; receives the checkpoint's other files too.
        originals: folder for the original values of the changed tensors, in files named like the checkpoint's; None
            saves none.
        unchanged: (parameter, expert) of stacked experts whose update is zero. Tensors that belong to these experts
            alone are copied and not saved to `originals`.
        without: names of files to leave out.
        progress: called after every file with the number of files done and in total.

    Raises:
        UnsupportedModelError: a changed weight is not stored as a tensor of its own.
        ArtifactError: files are damaged.
    """
    parts = _parts_by_tensor(outline, names, unchanged)
    placement = _Placement(outline, change, names)
    files = weight_files(outline.folder)
    copy_other_files(outline.folder, output, without=without)
    for number, path in enumerate(files, start=1):
        _add_to_file(path, output, parts, placement, originals=originals)
        if progress is not None:
            progress(number, len(files))
    write_hashes(output)


def _add_to_file(
    path: Path, output: Path, parts: Mapping[str, Part], placement: _Placement, *, originals: Path | None
) -> None:
    with _file(path) as (file, metadata):
        changed = sorted(file.keys() & parts.keys(), key=lambda name: (parts[name], name))
        if originals is not None and changed:
            originals.mkdir(parents=True, exist_ok=True)
            save_file({name: file.get_tensor(name) for name in changed}, originals / path.name)
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys() - parts.keys())}
        for name in changed:
            tensors[name] = _updated(file.get_tensor(name), placement.of(parts[name], name))
    save_file(tensors, output / path.name, metadata=metadata)


def restore_originals(
    folder: Path,
    originals: Path,
    output: Path,
    *,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint with its changed tensors replaced by the originals that `add_to_checkpoint` saved.

    Args:
        folder: the checkpoint.
        originals: the saved tensors, in files named like the checkpoint's.
        output: an empty folder.
        without: names of files to leave out.
        progress: called after every file with the number of files done and in total.

    Raises:
        ArtifactError: the originals belong to another checkpoint.
    """
    copy_other_files(folder, output, without=without)
    files = weight_files(folder)
    for number, path in enumerate(files, start=1):
        saved = _all_tensors(originals / path.name)
        with _file(path) as (file, metadata):
            if not saved.keys() <= file.keys():
                raise ArtifactError(
                    f"{originals / path.name} does not belong to {path}", remedy="restore the folder from a copy"
                )
            tensors = {name: saved[name] if name in saved else file.get_tensor(name) for name in sorted(file.keys())}
        save_file(tensors, output / path.name, metadata=metadata)
        if progress is not None:
            progress(number, len(files))
    write_hashes(output)


def _all_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; empty where the file does not exist."""
    if not path.is_file():
        return {}
    with _file(path) as (file, _):
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping


def checkpoint_fingerprint(outline: CheckpointOutline) -> str:
    """`model_fingerprint` of the stored weights, computed one tensor at a time."""
    shapes, fingerprint = outline.shapes, StreamedFingerprint()
    with reading(outline) as reader:
        for part in outline.sources:
            for name, tensor in reader.read(part).items():
                fingerprint.add(name, tensor, shapes[name])
    return fingerprint.value(outline.aliases())


def copy_other_files(folder: Path, output: Path, *, without: Collection[str] = ()) -> None:
    """Copies a checkpoint's files, except weights of any format, seawall's hashes, subfolders and `without`."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (HASHES_FILE, *without) and path.suffix not in _WEIGHTS:
            if leads_out(path):
                raise ArtifactError(
                    f"{path} is a link to a file outside the model, which would be copied",
                    got=path.resolve(),
                    remedy="put the file itself in the model's folder, or remove the link",
                )
            shutil.copyfile(path, output / path.name)


def _parts_by_tensor(
    outline: CheckpointOutline, names: frozenset[str], unchanged: Collection[tuple[str, int]]
) -> dict[str, Part]:
    """For each tensor on disk that changes, the part it belongs to."""
    parts = {
        name: part
        for part, sources in outline.sources.items()
        if part.name in names or outline.cut(part)
        for name, _ in sources.names
    }
    stored = {part.name for part in parts.values()}
    missing = sorted(names - stored - set(_split_off(outline, names)))
    if missing:
        raise UnsupportedModelError(
            f"{missing[0]} has no tensor of its own in {outline.folder}",
            expected="weights that are not tied to others",
            remedy=f"leave {missing[0]} out of the gene (gene.targets), or graft as an adapter",
        )
    separate = [part for part, sources in outline.sources.items() if not (sources.sliced or outline.cut(part))]
    untouched = set(unchanged).intersection(separate)
    return {name: part for name, part in parts.items() if part not in untouched}


def _split_off(outline: CheckpointOutline, names: frozenset[str]) -> Iterator[str]:
    """The changed parameters that loading splits off a larger tensor."""
    suffixes = tuple(
        suffix
        for sources in outline.sources.values()
        if sources.converter is not None
        for suffix in sources.converter.target_patterns[1:]
    )
    yield from (name for name in names if name.endswith(suffixes))


class _Placement:
    """The updates of the tensors on disk; those of the latest part are cached, since its tensors mostly follow."""

    def __init__(self, outline: CheckpointOutline, change: Change, names: frozenset[str]) -> None:
        self._outline, self._change, self._names = outline, change, names
        self._headers = read_headers(outline.folder)
        self._last: tuple[Part, dict[str, Tensor]] | None = None

    def of(self, part: Part, name: str) -> Tensor:
        if self._last is None or self._last[0] != part:
            self._last = (part, self._updates(part))
        return self._last[1][name]

    def _updates(self, part: Part) -> dict[str, Tensor]:
        sources = self._outline.sources[part]
        if sources.converter is None:
            name = sources.names[0][0]
            if not sources.sliced:
                return {name: self._change(part.name, None)}
            experts = self._headers[name].shape[0]
            return {name: torch.stack([self._change(part.name, expert) for expert in range(experts)])}
        return self._converted(part)

    def _converted(self, part: Part) -> dict[str, Tensor]:
        sources = self._outline.sources[part]
        assert sources.converter is not None
        shapes = {name: self._headers[name].shape for name, _ in sources.names}
        counting, start = copy.deepcopy(sources.converter), 0
        for name, pattern in sources.names:
            size = math.prod(shapes[name])
            counting.add_tensor(part.name, name, pattern, torch.arange(start, start + size).reshape(shapes[name]))
            start += size
        with library_errors(f"the layout of {part.name} in the files cannot be determined"):
            converted: dict[str, Any] = counting.convert(
                part.name, model=self._outline.model, config=self._outline.model.config
            )
        flat = torch.zeros(start)
        for name, value in converted.items():
            if name not in self._names:
                continue
            positions = value[0] if isinstance(value, list) else value
            positions = positions if part.expert is None else positions.squeeze(0)
            change = self._change(name, part.expert)
            _require_rearranged(positions, change, name)
            flat = flat.to(change.dtype)
            flat[positions.reshape(-1)] = change.reshape(-1)
        pieces = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _require_rearranged(positions: Tensor, change: Tensor, name: str) -> None:
    if positions.shape != change.shape or torch.unique(positions).numel() != positions.numel():
        raise UnsupportedModelError(
            f"loading changes the values of {name}, and does not only rearrange them",
            remedy="graft as an adapter instead",
        )


def _updated(tensor: Tensor, change: Tensor) -> Tensor:
    if not change.is_floating_point():
        return flipped(tensor, change)
    # adding 0 would turn -0 into 0
    return torch.where(change == 0, tensor, (tensor.float() + change).to(tensor.dtype))


@contextmanager
def _file(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The tensors of a file, and its metadata. Only errors raised by reading are reported as errors of the file."""
    with ExitStack() as stack:
        with library_errors(f"{path} cannot be read"):
            file = stack.enter_context(safe_open(path, framework="pt"))
            metadata = file.metadata() or {}
        yield _Tensors(file, path), metadata


class _Tensors:
    """A safetensors file whose `keys()` is a set."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def keys(self) -> set[str]:
        return set(self._file.keys())

    def get_tensor(self, name: str) -> Tensor:
        with library_errors(f"{self._path} cannot be read"):
            tensor: Tensor = self._file.get_tensor(name)
        return tensor
