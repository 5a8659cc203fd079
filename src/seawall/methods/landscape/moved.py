"""A model whose weights move along directions, for a while: aligned + sum of amounts times directions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import ArtifactError
from seawall.methods.landscape.directions import Direction
from seawall.models.files.stream import CheckpointOutline, Part, reading


@final
class MovedWeights:
    """Moves a loaded model's weights in place.

    Weights are always computed anew from the checkpoint's files and never from where they were: no error adds up, no
    copy is kept, and going back means to read the own weights again, which gives the same bits.

    Args:
        model: loaded from the checkpoint, on any device, in any float type.
        aligned: that checkpoint.
        directions: what it can be moved along.

    Raises:
        ArtifactError: the model does not hold the checkpoint's weights where a direction would change them.
    """

    def __init__(self, model: PreTrainedModel, aligned: CheckpointOutline, directions: Sequence[Direction]) -> None:
        self._aligned, self._directions = aligned, {one.name: one for one in directions}
        assert len(self._directions) == len(directions), "names of directions must differ"
        self._state: Mapping[str, Tensor] = model.state_dict()
        self._require_own()

    @contextmanager
    def at(self, amounts: Mapping[str, float]) -> Iterator[None]:
        """Inside, the model is moved; afterwards it has its own bits again, whatever happened.

        Args:
            amounts: how much of which direction, by name; those that are not named have none.

        Raises:
            ArtifactError, UnsupportedModelError: a file cannot be read any more.
        """
        used = {self._directions[name]: amount for name, amount in amounts.items() if amount != 0}
        try:
            self._write(used)
            yield
        finally:
            self._restore(used)

    def _write(self, used: Mapping[Direction, float]) -> None:
        with ExitStack() as stack:
            reader = stack.enter_context(reading(self._aligned))
            changes = {one: stack.enter_context(one.opened()) for one in used}
            for part in self._parts(used):
                own = reader.read(part)
                added = [(used[one], change(part, own)) for one, change in changes.items() if part in one.norms]
                self._put(part, _sum(own, added))

    def _restore(self, used: Iterable[Direction]) -> None:
        with reading(self._aligned) as reader:
            for part in self._parts(used):
                self._put(part, reader.read(part))

    def _parts(self, used: Iterable[Direction]) -> list[Part]:
        touched = {part for one in used for part in one.norms}
        return [part for part in self._aligned.sources if part in touched]

    def _put(self, part: Part, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._place(part, name).copy_(value)

    def _place(self, part: Part, name: str) -> Tensor:
        whole = self._state[name]
        return whole if part.expert is None else whole[part.expert]

    def _require_own(self) -> None:
        with reading(self._aligned) as reader:
            for part in self._parts(self._directions.values()):
                other = [name for name, value in reader.read(part).items() if not _same(value, self._place(part, name))]
                if other:
                    raise ArtifactError(
                        f"the loaded model does not hold the weights of {self._aligned.folder}",
                        got=f"other numbers in {other[0]}",
                        expected="the model as it was loaded from there",
                        remedy="load it again, without an adapter or a delta on it",
                    )


def _sum(own: Mapping[str, Tensor], added: Iterable[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """W plus amounts of changes, in float32."""
    moved = {name: tensor.float() for name, tensor in own.items()}
    for amount, change in added:
        for name, step in change.items():
            moved[name] = moved[name] + amount * step
    return moved


def _same(value: Tensor, held: Tensor) -> bool:
    return torch.equal(value.to(held.device, held.dtype), held)
