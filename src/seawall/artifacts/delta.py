"""What a repair changed, as bits: exact in both directions, and as large as the change.

On disk a delta is `delta.safetensors` and `delta.json`. The first holds one integer tensor for every touched tensor of
the model, under the same name: the bit patterns of the new weights XOR those of the old ones, as integers of the same
width. The second says which slices along dimension 0 (experts of a stack, say) each of them covers, or that it covers
the whole tensor, and holds four fingerprints: of the whole model and of the touched tensors, before and after.

Applying XORs the bits onto the weights and turns old into new; doing it once more turns new into old. So `apply` and
`revert` are one operation, exact for every value a float can hold: NaN payloads, infinities, -0.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seawall.artifacts.store import (
    Fields,
    load_artifact,
    load_document,
    parse_fields,
    require,
    save_artifact,
    tensors_fingerprint,
)
from seawall.errors import ArtifactError

NAME = "delta"
Indices = tuple[int, ...] | None
"""Slices along dimension 0, ascending; None for the whole tensor."""
_ENCODING = "bits of new XOR bits of old, as integers of the same width"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of some tensors of a model.

    Attributes:
        base_model: fingerprint of the whole model before.
        result_model: fingerprint of the whole model after.
        before: fingerprint of the touched tensors before.
        after: fingerprint of the touched tensors after.
        slices: which slices of which tensors are stored.
        bits: XOR of the bit patterns, by tensor name, on the CPU.
    """

    base_model: str
    result_model: str
    before: str
    after: str
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
    ) -> Delta:
        """The delta that turns `old` into `new`.

        Args:
            old: whole tensors by name, before.
            new: the same after; of the tensors in `slices`, only those slices may differ.
            slices: the touched tensors; ascending indices along dimension 0, or None for the whole tensor.
            base_model: fingerprint of the whole model before.
            result_model: fingerprint of the whole model after.
        """
        kept: dict[str, Indices] = {name: None if at is None else tuple(at) for name, at in slices.items()}
        assert all(at is None or list(at) == sorted(set(at)) for at in kept.values()), "indices must ascend"
        return cls(
            base_model=base_model,
            result_model=result_model,
            before=tensors_fingerprint({name: old[name] for name in kept}),
            after=tensors_fingerprint({name: new[name] for name in kept}),
            slices=kept,
            bits={name: (_cut(old[name], at) ^ _cut(new[name], at)).contiguous() for name, at in kept.items()},
        )

    def apply(self, state: Mapping[str, Tensor]) -> None:
        """Turn the base model's tensors into the result's, in place.

        Args:
            state: a model's `state_dict()`, or any tensors by name that hold the touched ones.

        Raises:
            ArtifactError: the tensors are not the base's; nothing is changed then.
        """
        self._turn(state, start=self.before, end=self.after, to="base")

    def revert(self, state: Mapping[str, Tensor]) -> None:
        """Turn the result model's tensors back into the base's, in place, to the last bit.

        Args:
            state: as for `apply`.

        Raises:
            ArtifactError: the tensors are not the result's; nothing is changed then.
        """
        self._turn(state, start=self.after, end=self.before, to="repaired")

    def save(self, folder: Path) -> None:
        """Write `delta.safetensors` and `delta.json`."""
        written = _Fields(
            base_model=self.base_model,
            result_model=self.result_model,
            before=self.before,
            after=self.after,
            encoding=_ENCODING,
            slices=dict(self.slices),
        )
        save_artifact(folder, NAME, written, self.bits)

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or its parts do not fit each other.
        """
        read, bits = load_artifact(folder, NAME, _Fields)
        path = folder / f"{NAME}.json"
        require(read.encoding == _ENCODING, path, f"the encoding {_ENCODING!r}")
        require(set(bits) == set(read.slices), path, "slices of exactly the tensors in delta.safetensors")
        for name, at in read.slices.items():
            require(bits[name].dtype in _INTEGERS.values(), path, f"integers in {name}")
            ascending = at is None or (list(at) == sorted(set(at)) and bits[name].shape[:1] == (len(at),))
            require(ascending, path, f"ascending indices of {name}, one for each slice")
        return cls(read.base_model, read.result_model, read.before, read.after, slices=read.slices, bits=bits)

    def _turn(self, state: Mapping[str, Tensor], *, start: str, end: str, to: str) -> None:
        touched = self._touched(state)
        found = tensors_fingerprint(touched)
        if found != start:
            raise ArtifactError(
                f"the delta does not fit this model: its tensors are not the {to} model's",
                got="the model that this operation results in" if found == end else f"other weights {found[:23]}...",
                expected=f"the {to} model, tensors {start[:23]}...",
                remedy="nothing is left to do" if found == end else "name the model that the delta was made from",
            )
        self._flip(touched)
        if tensors_fingerprint(touched) != end:
            self._flip(touched)
            raise ArtifactError(
                "the delta's own tensors do not lead to the weights it names; the model is as it was",
                remedy="restore the delta from a copy",
            )

    def _touched(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to change, all of them known to fit, so that a change is never left half done."""
        for name, at in self.slices.items():
            if name not in state or not _fits(self.bits[name], state[name], at):
                got = f"a tensor of shape {tuple(state[name].shape)}, {state[name].dtype}" if name in state else "none"
                raise ArtifactError(
                    f"the delta does not fit this model's tensor {name}",
                    got=got,
                    expected="the model that the delta was made from",
                    remedy="name that model with --model",
                )
        return {name: state[name] for name in self.slices}

    def _flip(self, touched: Mapping[str, Tensor]) -> None:
        for name, tensor in _untied(touched):
            ints, at = _as_integers(tensor), self.slices[name]
            change = self.bits[name].to(ints.device)
            if at is None:
                ints ^= change
            else:
                where = torch.tensor(at, dtype=torch.int64, device=ints.device)
                ints[where] = ints[where] ^ change


@dataclass(frozen=True, slots=True)
class DeltaOutline:
    """A delta without its bits, from the JSON alone; the attributes are those of `Delta`."""

    base_model: str
    result_model: str
    slices: Mapping[str, Indices]

    @classmethod
    def load(cls, folder: Path) -> DeltaOutline:
        """Read the outline of what `Delta.save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = folder / f"{NAME}.json"
        document = load_document(path, NAME)
        read = parse_fields(path, {key: document[key] for key in document if key in _Fields.model_fields}, _Fields)
        return cls(read.base_model, read.result_model, read.slices)


class _Fields(Fields):
    base_model: str
    result_model: str
    before: str
    after: str
    encoding: str
    slices: dict[str, tuple[int, ...] | None]


def _as_integers(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width: no float operation ever touches the bits."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _cut(tensor: Tensor, at: Indices) -> Tensor:
    ints = _as_integers(tensor.cpu())
    return ints if at is None else ints[list(at)]


def _fits(bits: Tensor, tensor: Tensor, at: Indices) -> bool:
    if bits.element_size() != tensor.element_size():
        return False
    if at is None:
        return bits.shape == tensor.shape
    in_range = tensor.dim() > 0 and all(0 <= index < tensor.shape[0] for index in at)
    return in_range and bits.shape == (len(at), *tensor.shape[1:])


def _untied(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each memory once: tied weights have two names, and flipping them twice would change nothing."""
    seen = set()
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if memory not in seen:
            seen.add(memory)
            yield name, tensor
