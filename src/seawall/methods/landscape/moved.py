"""A loaded model whose weights move along directions, W + sum of amount x d, inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.distributed.process import Processes
from seawall.errors import ArtifactError
from seawall.methods.landscape.directions import Direction
from seawall.models.everywhere import Held, together
from seawall.models.files.stream import CheckpointOutline, Part, reading
from seawall.models.lora.merged import survival
from seawall.models.replicas import attempted, require_success

_HALF = (torch.bfloat16, torch.float16)


@final
class MovedWeights:
    """Moves a loaded model's weights in place.

    Every move starts from the checkpoint's files, not from the current weights, so errors do not accumulate and no copy
    of the weights is stored. Restoring reads the files again, which gives the same bits. Where the model has copies in
    other processes of a launch, each process computes some parts of a move and sends these to the others.

    Args:
        model: loaded from the checkpoint, on any device, in any float type.
        aligned: that checkpoint.
        directions: the directions that amounts may name.

    Raises:
        ArtifactError: weights that a direction changes differ between model and checkpoint.
    """

    def __init__(self, model: PreTrainedModel, aligned: CheckpointOutline, directions: Sequence[Direction]) -> None:
        self._aligned, self._directions = aligned, {direction.name: direction for direction in directions}
        assert len(self._directions) == len(directions), "names of directions must differ"
        self._model = model
        self._state: Mapping[str, Tensor] = model.state_dict()
        self._require_own()

    @contextmanager
    def at(self, amounts: Mapping[str, float]) -> Iterator[None]:
        """Inside, the model is moved; afterwards it has its original bits again, also after an exception.

        Args:
            amounts: by name of the direction; 0 for directions that are not named.

        Raises:
            ArtifactError, UnsupportedModelError: a file can no longer be read.
        """
        used = self._used(amounts)
        try:
            self._write(used, together(self._model))
            yield
        finally:
            self._restore(used)

    @torch.no_grad()
    def realised(self, amounts: Mapping[str, float]) -> float:
        """The share of a move that the weights' type can hold, along the move: 1 in float32, less after rounding.

        <realised, intended> / ||intended||^2 over all changed weights; nothing is written.

        Raises:
            ArtifactError, UnsupportedModelError: as `at`.
        """
        used = self._used(amounts)
        if not any(weight.dtype in _HALF for weight in self._state.values()):
            return 1.0
        return survival(self._rounded(used))

    def _rounded(self, used: Mapping[Direction, float]) -> Iterator[tuple[Tensor, Tensor]]:
        """(realised, intended) change of every tensor that its type rounds to 16 bits."""
        for part, own, moved in self._moves(used, self._parts(used)):
            for name, value in moved.items():
                dtype = self._weight(part, name).dtype
                if dtype in _HALF:
                    before = own[name].float()
                    yield value.to(dtype).float() - before, value - before

    def _used(self, amounts: Mapping[str, float]) -> dict[Direction, float]:
        return {self._directions[name]: amount for name, amount in amounts.items() if amount != 0}

    def _moves(
        self, used: Mapping[Direction, float], parts: Iterable[Part]
    ) -> Iterator[tuple[Part, Mapping[str, Tensor], dict[str, Tensor]]]:
        """Each of the parts, its own weights, and W + sum of amount x d in float32."""
        with ExitStack() as stack:
            reader = stack.enter_context(reading(self._aligned))
            changes = {direction: stack.enter_context(direction.opened()) for direction in used}
            for part in parts:
                own = reader.read(part)
                added = [
                    (used[direction], change(part, own))
                    for direction, change in changes.items()
                    if part in direction.norms
                ]
                yield part, own, _sum(own, added)

    def _write(self, used: Mapping[Direction, float], processes: Processes) -> None:
        """Moves the weights; of several processes, each computes every n-th part."""
        parts = self._parts(used)

        def write() -> None:
            for part, _, moved in self._moves(used, parts[processes.rank :: processes.count]):
                self._copy(part, moved)

        if processes.count == 1:
            write()
            return
        require_success(processes.gather_everywhere(attempted(write)))
        for index, part in enumerate(parts):
            for name in sorted({name for direction in used for name in direction.norms.get(part, ())}):
                processes.copy_from(index % processes.count, self._weight(part, name))

    def _restore(self, used: Iterable[Direction]) -> None:
        with reading(self._aligned) as reader:
            for part in self._parts(used):
                self._copy(part, reader.read(part))

    def _parts(self, used: Iterable[Direction]) -> list[Part]:
        touched = {part for direction in used for part in direction.norms}
        return [part for part in self._aligned.sources if part in touched]

    def _copy(self, part: Part, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._weight(part, name).copy_(value)

    def _weight(self, part: Part, name: str) -> Tensor:
        tensor = self._state[name]
        return tensor if part.expert is None else tensor[part.expert]

    def _require_own(self) -> None:
        with reading(self._aligned) as reader:
            for part in self._parts(self._directions.values()):
                differing = [
                    name for name, value in reader.read(part).items() if not _same(value, self._weight(part, name))
                ]
                if differing:
                    raise ArtifactError(
                        f"the loaded model does not hold the weights of {self._aligned.folder}",
                        got=f"other numbers in {differing[0]}",
                        expected="the unchanged weights of that checkpoint",
                        remedy="load the model again, without adapter or delta",
                    )


MOVED = Held[MovedWeights]("moved weights")
"""The model's weights in every process of a launch."""


def moved_by(amounts: Mapping[str, float], model: PreTrainedModel) -> AbstractContextManager[None]:
    """`MovedWeights.at` of the weights that this process holds as `MOVED`."""
    return MOVED.value.at(amounts)


def _sum(own: Mapping[str, Tensor], added: Iterable[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """W + sum of amount x d, in float32."""
    moved = {name: tensor.float() for name, tensor in own.items()}
    for amount, change in added:
        for name, step in change.items():
            moved[name] = moved[name] + amount * step
    return moved


def _same(value: Tensor, weight: Tensor) -> bool:
    return torch.equal(value.to(weight.device, weight.dtype), weight)
