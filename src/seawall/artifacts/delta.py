"""What a repair changed, as bits: exact in both directions, and as large as the change.

The stored tensor is the bit pattern of the new weights XOR that of the old ones. Applying it turns old into new;
applying it once more turns new into old, so `apply` and `revert` are one operation and both are exact, for every
value a float can hold. A hash of the tensors before and after says which of the two a model is.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seawall.artifacts.store import load_artifact, save_artifact, tensors_fingerprint
from seawall.errors import ArtifactError

NAME = "delta"
Indices = tuple[int, ...] | None
"""Slices along dimension 0; None for the whole tensor."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


@dataclass(frozen=True)
class Delta:
    """A change of some tensors of a model.

    Attributes:
        base_model: fingerprint of the whole model before.
        result_model: fingerprint of the whole model after.
        before: fingerprint of the touched tensors before.
        after: fingerprint of the touched tensors after.
        slices: which slices of which tensors are stored.
        bits: XOR of the bit patterns, by tensor name.
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
        """The delta that turns `old` into `new`, both whole tensors by name; only `slices` may differ."""
        kept: dict[str, Indices] = {name: None if at is None else tuple(at) for name, at in slices.items()}
        bits = {}
        for name, at in kept.items():
            pair = (old[name], new[name]) if at is None else (old[name][list(at)], new[name][list(at)])
            bits[name] = (_bits(pair[0].cpu()) ^ _bits(pair[1].cpu())).contiguous()
        return cls(
            base_model=base_model,
            result_model=result_model,
            before=tensors_fingerprint({name: old[name] for name in kept}),
            after=tensors_fingerprint({name: new[name] for name in kept}),
            slices=kept,
            bits=bits,
        )

    def apply(self, state: MutableMapping[str, Tensor]) -> None:
        """Turns the base model's tensors into the result's, in place.

        Raises:
            ArtifactError: the tensors are not the base's; nothing is changed then.
        """
        self._turn(state, start=self.before, end=self.after, to="base")

    def revert(self, state: MutableMapping[str, Tensor]) -> None:
        """Turns the result model's tensors back into the base's, in place, to the last bit.

        Raises:
            ArtifactError: the tensors are not the result's; nothing is changed then.
        """
        self._turn(state, start=self.after, end=self.before, to="repaired")

    def _turn(self, state: MutableMapping[str, Tensor], *, start: str, end: str, to: str) -> None:
        found = tensors_fingerprint(self._touched(state))
        if found != start:
            raise ArtifactError(
                f"the delta does not fit this model: its tensors are not the {to} model's",
                got="the model that this operation results in" if found == end else "other weights",
                expected=f"the {to} model, tensors {start[:23]}...",
                remedy="nothing is left to do" if found == end else "name the model that the delta was made from",
            )
        self._flip(state)
        if tensors_fingerprint(self._touched(state)) != end:
            self._flip(state)
            raise ArtifactError("the delta's own tensors are damaged", remedy="restore the delta from a copy")

    def _touched(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = sorted(set(self.slices) - set(state))
        if missing:
            raise ArtifactError(
                "the delta does not fit this model",
                got=f"a model without the tensor {missing[0]}",
                expected="the model that the delta was made from",
                remedy="name that model with --model",
            )
        return {name: state[name] for name in self.slices}

    def _flip(self, state: MutableMapping[str, Tensor]) -> None:
        for name, at in self.slices.items():
            target = state[name].detach()
            change = self.bits[name].to(target.device)
            part = target if at is None else target[list(at)]
            flipped = (_bits(part) ^ change.view(part.shape)).view(target.dtype)
            if at is None:
                target.copy_(flipped)
            else:
                target[list(at)] = flipped

    def save(self, folder: Path) -> None:
        """Writes `delta.safetensors` and `delta.json`."""
        written = {
            "base_model": self.base_model,
            "result_model": self.result_model,
            "before": self.before,
            "after": self.after,
            "encoding": "bits of new XOR bits of old, as integers of the same width",
            "slices": {name: None if at is None else list(at) for name, at in self.slices.items()},
        }
        save_artifact(folder, NAME, written, self.bits)

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        document, tensors = load_artifact(folder, NAME)
        slices = {name: None if at is None else tuple(at) for name, at in document["slices"].items()}
        names = ("base_model", "result_model", "before", "after")
        return cls(**{name: document[name] for name in names}, slices=slices, bits=tensors)
