"""A repair's change of the weights as bits: exact in both directions, and no larger than the change.

On disk a delta is `delta.safetensors` and `delta.json`. The first holds one integer tensor for every changed tensor of
the model, under the same name: the bit patterns of the new weights XOR those of the old ones, as integers of the same
width. The second lists which slices along dimension 0 (experts of a stack, say) each of them covers, or that it covers
the full tensor, and four fingerprints: of the full model and of these slices, before and after. Deltas of earlier
versions have fingerprints of the full changed tensors in place of those of the slices.

Applying XORs the bits onto the weights and turns old into new; a second time turns new into old. So `apply` and
`revert` are one operation, exact for every value of a float: NaN payloads, infinities, -0.0.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from seawall.artifacts.store import (
    load_document,
    load_record,
    parse_fields,
    require,
    save_record,
    tensor_digest,
    tensors_fingerprint,
)
from seawall.errors import ArtifactError

NAME = "delta"
Indices = tuple[int, ...] | None
"""Slices along dimension 0, ascending; None for the full tensor."""
Encoding = Literal["bits of new XOR bits of old, as integers of the same width"]
_OF_SLICES = "slices:"
"""Prefix of a fingerprint of slices; a fingerprint of full tensors, in deltas of earlier versions, has none."""
_WORKERS = 4
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of some tensors of a model.

    Attributes:
        base_model: fingerprint of the full model before.
        result_model: fingerprint of the full model after.
        before: fingerprint of the changed slices before.
        after: fingerprint of the changed slices after.
        encoding: of the bits, for readers.
        slices: stored slices of every changed tensor.
        bits: XOR of the bit patterns, by tensor name, on the CPU.
    """

    base_model: str
    result_model: str
    before: str
    after: str
    encoding: Encoding = field(default="bits of new XOR bits of old, as integers of the same width", kw_only=True)
    slices: Mapping[str, Indices]
    bits: Mapping[str, Tensor]

    @classmethod
    def between(
        cls,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        slices: Mapping[str, Sequence[int] | None],
        *,
        base_model: str,
        result_model: str,
        of_slices: bool = False,
    ) -> Delta:
        """The delta that turns a model before a change into `new`.

        Memory holds the slices once, and the slices of a few tensors twice.

        Args:
            old: the slices of every tensor in `slices` before, on the CPU and contiguous; used up, since the bits
                replace them in place.
            new: full tensors by name, after; of the tensors in `slices`, only those slices may differ from before.
            slices: the changed tensors; ascending indices along dimension 0, or None for the full tensor.
            base_model: fingerprint of the full model before.
            result_model: fingerprint of the full model after.
            of_slices: whether `new` has the slices alone, as `old`.
        """
        stored: dict[str, Indices] = {name: None if rows is None else tuple(rows) for name, rows in slices.items()}
        assert all(_ascending(indices) for indices in stored.values()), "indices must ascend"
        before = _fingerprint({name: _rows(old[name], indices) for name, indices in stored.items()}, stored)
        parts = _rows if of_slices else _slices
        after = _fingerprint({name: parts(new[name], indices) for name, indices in stored.items()}, stored)
        bits = {}
        for name, indices in stored.items():
            bits[name] = _as_integers(old[name])
            bits[name] ^= _cut(new[name], None if of_slices else indices)
        return cls(
            base_model=base_model, result_model=result_model, before=before, after=after, slices=stored, bits=bits
        )

    def apply(self, state: Mapping[str, Tensor]) -> None:
        """Turn the base model's tensors into the result's, in place. Only the slices are checked.

        Args:
            state: a model's `state_dict()`, or other tensors by name that include the changed ones.

        Raises:
            ArtifactError: the slices are not the base's; they stay as they are.
        """
        self._turn(state, start=self.before, end=self.after, to="base")

    def revert(self, state: Mapping[str, Tensor]) -> None:
        """Turn the result model's tensors back into the base's, in place, to the last bit.

        Args:
            state: as for `apply`.

        Raises:
            ArtifactError: the slices are not the result's; they stay as they are.
        """
        self._turn(state, start=self.after, end=self.before, to="repaired")

    def slice_bits(self, name: str, index: int | None, shape: Sequence[int]) -> Tensor:
        """The bits of one slice of a changed tensor, or of the full tensor; zero where nothing changes.

        Args:
            name: of the tensor.
            index: along dimension 0; None for the full tensor.
            shape: of the full tensor.
        """
        bits, indices = self.bits[name], self.slices[name]
        if indices is None:
            return bits if index is None else bits[index]
        if index is not None:
            position = bisect_left(indices, index)
            stored = position < len(indices) and indices[position] == index
            return bits[position] if stored else bits.new_zeros(tuple(shape)[1:])
        return bits.new_zeros(tuple(shape)).index_copy(0, torch.tensor(indices, dtype=torch.int64), bits)

    def save(self, folder: Path) -> None:
        """Write `delta.safetensors` and `delta.json`."""
        save_record(folder / f"{NAME}.json", NAME, self)

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Read `delta.safetensors` and `delta.json`.

        Raises:
            ArtifactError: a file is missing or damaged, or parts contradict each other.
        """
        path = folder / f"{NAME}.json"
        delta = load_record(path, NAME, cls)
        require(set(delta.bits) == set(delta.slices), path, "slices of exactly the tensors in delta.safetensors")
        for name, indices in delta.slices.items():
            bits = delta.bits[name]
            require(bits.dtype in _INTEGERS.values(), path, f"integers in {name}")
            fits = _ascending(indices) and (indices is None or bits.shape[:1] == (len(indices),))
            require(fits, path, f"ascending indices of {name}, one for each slice")
        return delta

    def _turn(self, state: Mapping[str, Tensor], *, start: str, end: str, to: str) -> None:
        changed = self._changed(state)
        fingerprint = self._fingerprint_of(changed)
        if fingerprint != start:
            is_done = fingerprint == end
            raise ArtifactError(
                f"the delta does not fit this model: its tensors are not the {to} model's",
                got="the model that this operation results in" if is_done else f"other weights {fingerprint[:23]}...",
                expected=f"the {to} model, tensors {start[:23]}...",
                remedy="nothing is left to do" if is_done else "name the model that the delta was made from",
            )
        self._flip(changed)
        if self._fingerprint_of(changed) != end:
            self._flip(changed)
            raise ArtifactError(
                "the delta's own tensors do not lead to the weights it names; the model is unchanged",
                remedy="restore the delta from a copy",
            )

    def _fingerprint_of(self, changed: Mapping[str, Tensor]) -> str:
        if not self.before.startswith(_OF_SLICES):
            return tensors_fingerprint(changed)
        return _fingerprint(
            {name: _slices(changed[name], indices) for name, indices in self.slices.items()}, self.slices
        )

    def _changed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to change; all are checked first, so that no change is left half done."""
        for name, indices in self.slices.items():
            if name not in state or not _fits(self.bits[name], state[name], indices):
                got = f"a tensor of shape {tuple(state[name].shape)}, {state[name].dtype}" if name in state else "none"
                raise ArtifactError(
                    f"the delta does not fit this model's tensor {name}",
                    got=got,
                    expected="the model that the delta was made from",
                    remedy="name that model with --model",
                )
        return {name: state[name] for name in self.slices}

    def _flip(self, changed: Mapping[str, Tensor]) -> None:
        for name, tensor in _untied(changed):
            integers, indices = _as_integers(tensor), self.slices[name]
            bits = self.bits[name].to(integers.device)
            if indices is None:
                integers ^= bits
            else:
                index = torch.tensor(indices, dtype=torch.int64, device=integers.device)
                integers[index] = integers[index] ^ bits


@dataclass(frozen=True, slots=True)
class DeltaOutline:
    """A delta without its bits, from the JSON alone; attributes as in `Delta`."""

    base_model: str
    result_model: str
    slices: Mapping[str, Indices]

    @classmethod
    def load(cls, folder: Path) -> DeltaOutline:
        """Read `delta.json`.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        path = folder / f"{NAME}.json"
        document = load_document(path, NAME)
        entries = {key: value for key, value in document.items() if key not in ("tensors", "sha256")}
        parsed = parse_fields(path, entries, Delta)
        return cls(parsed["base_model"], parsed["result_model"], parsed["slices"])


def flipped(tensor: Tensor, bits: Tensor) -> Tensor:
    """The tensor with its bits XOR these."""
    integers = _as_integers(tensor)
    return (integers ^ bits.to(integers.dtype)).view(tensor.dtype)


def _ascending(indices: Indices) -> bool:
    return indices is None or list(indices) == sorted(set(indices))


def _as_integers(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width, so that no float operation sees the bits."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _cut(tensor: Tensor, indices: Indices) -> Tensor:
    integers = _as_integers(tensor)
    return (integers if indices is None else integers[list(indices)]).cpu()


def _slices(tensor: Tensor, indices: Indices) -> list[Tensor]:
    """Views of these slices of a full tensor."""
    return [tensor] if indices is None else [tensor[index] for index in indices]


def _rows(tensor: Tensor, indices: Indices) -> list[Tensor]:
    """Views of the slices of a tensor that holds these slices alone."""
    return [tensor] if indices is None else list(tensor)


def _fingerprint(tensors: Mapping[str, Sequence[Tensor]], slices: Mapping[str, Indices]) -> str:
    """sha256 over `name index dtype shape digest` lines, one per slice; each thread reads one slice at a time."""

    def lines(name: str) -> str:
        indices: Sequence[int | None] = [None] if (of_name := slices[name]) is None else of_name
        return "".join(
            f"{name} {index} {tensor.dtype} {tuple(tensor.shape)} {tensor_digest(tensor)}\n"
            for index, tensor in zip(indices, tensors[name], strict=True)
        )

    with ThreadPoolExecutor(_WORKERS) as pool:
        text = "".join(pool.map(lines, sorted(tensors)))
    return f"{_OF_SLICES}sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _fits(bits: Tensor, tensor: Tensor, indices: Indices) -> bool:
    if bits.element_size() != tensor.element_size():
        return False
    if indices is None:
        return bits.shape == tensor.shape
    in_range = tensor.dim() > 0 and all(0 <= index < tensor.shape[0] for index in indices)
    return in_range and bits.shape == (len(indices), *tensor.shape[1:])


def _untied(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every memory once: tied weights have two names, and two flips would cancel."""
    memories = set()
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if memory not in memories:
            memories.add(memory)
            yield name, tensor
