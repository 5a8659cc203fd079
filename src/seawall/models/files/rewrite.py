"""A checkpoint with something added to some weights, written file by file: no model is ever in memory.

What is added is named and stacked as in memory; the files may name and cut tensors otherwise. Where each number of a
file's tensor ends up is asked of the very converter that loading uses, by loading numbers that count positions.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.checkpoint import HASHES_FILE, read_headers, weight_files
from seawall.models.files.fingerprint import StreamedFingerprint
from seawall.models.files.load import library_errors
from seawall.models.files.stream import CheckpointOutline, Part, reading
from seawall.runs.files import file_hash, write_json

Change = Callable[[str, int | None], Tensor]
"""(parameter, expert of a stack or None) -> what is added to it, as the model stores it, float32."""
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
    progress: Progress | None = None,
) -> None:
    """Writes the checkpoint with `change` added to the parameters `names`; sums are rounded to the files' own type.

    At most one file's tensors are in memory, and one part's change.

    Args:
        outline: the checkpoint.
        names: the parameters that change.
        change: what is added to them.
        output: an empty folder; gets every other file of the checkpoint too.
        originals: a folder for the changed tensors as they were, under the names of their files; None keeps none.
        unchanged: experts of stacks to which nothing is added, as (parameter, expert): tensors of theirs alone are left
            as they are, and not kept.
        progress: told after every file how many are done and how many there are.

    Raises:
        UnsupportedModelError: a changed weight has no place of its own in the files.
        ArtifactError: damaged files.
    """
    parts = _parts_by_tensor(outline, names, unchanged)
    placement = _Placement(outline, change, names)
    files = weight_files(outline.folder)
    copy_other_files(outline.folder, output)
    for number, path in enumerate(files, start=1):
        with _file(path) as (file, metadata):
            touched = sorted(file.keys() & parts.keys(), key=lambda name: (parts[name], name))
            if originals is not None and touched:
                originals.mkdir(parents=True, exist_ok=True)
                save_file({name: file.get_tensor(name) for name in touched}, originals / path.name)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys() - parts.keys())}
            for name in touched:
                tensors[name] = _sum(file.get_tensor(name), placement.of(parts[name], name))
        save_file(tensors, output / path.name, metadata=metadata)
        del tensors
        if progress is not None:
            progress(number, len(files))
    write_hashes(output)


def put_back(
    folder: Path,
    originals: Path,
    output: Path,
    *,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint with tensors in place of its own: those that `add_to_checkpoint` kept.

    Args:
        folder: the checkpoint.
        originals: the kept tensors, in files that are called as the checkpoint's.
        output: an empty folder.
        without: files that are not taken along.
        progress: told after every file.

    Raises:
        ArtifactError: the files do not belong to each other.
    """
    copy_other_files(folder, output, without=without)
    files = weight_files(folder)
    for number, path in enumerate(files, start=1):
        kept: dict[str, Tensor] = {}
        if (originals / path.name).is_file():
            with _file(originals / path.name) as (file, _):
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping
        with _file(path) as (file, metadata):
            if not kept.keys() <= file.keys():
                raise ArtifactError(
                    f"{originals / path.name} does not belong to {path}", remedy="restore the folder from a copy"
                )
            tensors = {name: kept[name] if name in kept else file.get_tensor(name) for name in sorted(file.keys())}
        save_file(tensors, output / path.name, metadata=metadata)
        if progress is not None:
            progress(number, len(files))
    write_hashes(output)


def checkpoint_fingerprint(outline: CheckpointOutline) -> str:
    """`model_fingerprint` of a checkpoint as its files store it, a tensor at a time."""
    shapes, found = outline.shapes, StreamedFingerprint()
    with reading(outline) as reader:
        for part in outline.sources:
            for name, tensor in reader.read(part).items():
                found.add(name, tensor, shapes[name])
    return found.value(outline.aliases())


def copy_other_files(folder: Path, output: Path, *, without: Collection[str] = ()) -> None:
    """Everything in a checkpoint's folder but weights of any kind, seawall's own hashes, subfolders and `without`."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (HASHES_FILE, *without) and path.suffix not in _WEIGHTS:
            shutil.copyfile(path, output / path.name)


def write_hashes(folder: Path) -> None:
    """Leaves the hash of every file of a checkpoint in it, where loading checks them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != HASHES_FILE)
    write_json(folder / HASHES_FILE, {"files": {path.name: file_hash(path) for path in files}})


def _parts_by_tensor(
    outline: CheckpointOutline, names: frozenset[str], unchanged: Collection[tuple[str, int]]
) -> dict[str, Part]:
    """The part that each tensor on disk is read for, of the parts that change."""
    found = {
        name: part
        for part, sources in outline.sources.items()
        if part.name in names or outline.cut(part)
        for name, _ in sources.names
    }
    reached = {part.name for part in found.values()}
    lost = sorted(names - reached - set(_cut_names(outline, names)))
    if lost:
        raise UnsupportedModelError(
            f"{lost[0]} has no tensor of its own in {outline.folder}",
            expected="weights that are not tied to others",
            remedy="leave it out of the gene (gene.targets), or graft as an adapter",
        )
    apart = [part for part, sources in outline.sources.items() if not (sources.sliced or outline.cut(part))]
    alone = set(unchanged).intersection(apart)
    return {name: part for name, part in found.items() if part not in alone}


def _cut_names(outline: CheckpointOutline, names: frozenset[str]) -> Iterator[str]:
    """The changed parameters that are made of a tensor which several are cut from."""
    ends = tuple(
        end
        for sources in outline.sources.values()
        if sources.converter is not None
        for end in sources.converter.target_patterns[1:]
    )
    yield from (name for name in names if name.endswith(ends))


class _Placement:
    """What is added to the tensors of a part; that of the last part is kept, as its tensors mostly come together."""

    def __init__(self, outline: CheckpointOutline, change: Change, names: frozenset[str]) -> None:
        self._outline, self._change, self._names = outline, change, names
        self._headers = read_headers(outline.folder)
        self._last: tuple[Part, dict[str, Tensor]] | None = None

    def of(self, part: Part, name: str) -> Tensor:
        if self._last is None or self._last[0] != part:
            self._last = (part, self._placed(part))
        return self._last[1][name]

    def _placed(self, part: Part) -> dict[str, Tensor]:
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
        with library_errors(f"the place of {part.name} in the files cannot be found"):
            made: dict[str, Any] = counting.convert(
                part.name, model=self._outline.model, config=self._outline.model.config
            )
        flat = torch.zeros(start)
        for name, value in made.items():
            if name not in self._names:
                continue
            places = value[0] if isinstance(value, list) else value
            places = places if part.expert is None else places.squeeze(0)
            change = self._change(name, part.expert)
            _require_rearranged(places, change, name)
            flat[places.reshape(-1)] = change.reshape(-1)
        cut = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), cut, strict=True)}


def _require_rearranged(places: Tensor, change: Tensor, name: str) -> None:
    if places.shape != change.shape or torch.unique(places).numel() != places.numel():
        raise UnsupportedModelError(
            f"loading does more to {name} than to rearrange what the files hold",
            remedy="graft as an adapter instead",
        )


def _sum(tensor: Tensor, change: Tensor) -> Tensor:
    # adding 0 would turn -0 into 0
    return torch.where(change == 0, tensor, (tensor.float() + change).to(tensor.dtype))


@contextmanager
def _file(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The tensors of a file, and its metadata. Only what reading raises is said to be the file's fault."""
    with ExitStack() as stack:
        with library_errors(f"{path} cannot be read"):
            file = stack.enter_context(safe_open(path, framework="pt"))
            metadata = file.metadata() or {}
        yield _Tensors(file, path), metadata


class _Tensors:
    """A safetensors file whose names are a set."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def keys(self) -> set[str]:
        return set(self._file.keys())

    def get_tensor(self, name: str) -> Tensor:
        with library_errors(f"{self._path} cannot be read"):
            tensor: Tensor = self._file.get_tensor(name)
        return tensor
