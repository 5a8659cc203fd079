"""Forward passes that go on with fewer rows when memory runs out, and the one line where no setting is left to lower.

The idea of Accelerate's `find_executable_batch_size`: a failed attempt is repeated with half the rows. Results are the
same up to rounding, because every row is computed once and batches are weighted by their rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, final

from seawall.errors import SeawallError
from seawall.models.memory import is_out_of_memory, unless_out_of_memory

T = TypeVar("T")

_LOGGED = "micro_batch_size"


def in_buckets(
    buckets: Iterable[Sequence[int]],
    work: Callable[[list[int]], T],
    *,
    remedy: str = "load the model in bfloat16, or use a larger device",
) -> Iterator[tuple[list[int], T]]:
    """Runs `work` on each bucket of positions; yields the positions and their result.

    A bucket that exceeds memory is halved, and all later ones are at most as large as the half that fits.

    Args:
        buckets: positions of the rows of each forward pass, longest rows first.
        work: a forward pass over the rows at these positions; may be repeated.
        remedy: what a user can do when one row exceeds memory.

    Raises:
        SeawallError: one row alone exceeds memory.
    """
    waiting = deque(list(bucket) for bucket in buckets)
    limit = max(map(len, waiting), default=1)
    while waiting:
        positions = waiting.popleft()
        if len(positions) > limit:
            waiting.appendleft(positions[limit:])
            positions = positions[:limit]
        result = unless_out_of_memory(partial(_boxed, work, positions))
        if result is not None:
            yield positions, result[0]
            continue
        if len(positions) == 1:
            raise SeawallError("memory ran out in a forward pass", got="one row", remedy=remedy)
        limit = len(positions) // 2
        waiting.appendleft(positions)


def _boxed(work: Callable[[list[int]], T], positions: list[int]) -> tuple[T]:
    return (work(positions),)


@final
class RowLimit:
    """The maximum number of rows of a forward pass in training.

    Args:
        rows: the maximum; None for a whole batch.
        automatic: whether it is halved when memory runs out.
    """

    def __init__(self, rows: int | None, *, automatic: bool) -> None:
        self._rows = rows
        self._automatic = automatic
        self._largest = 1

    @property
    def rows(self) -> int | None:
        """The present maximum; None for a whole batch."""
        return self._rows

    def resume(self, row: Mapping[str, Any]) -> None:
        """Takes the maximum that `logged` added to the last row of an interrupted training."""
        if self._automatic:
            self._rows = row.get(_LOGGED, self._rows)

    @property
    def logged(self) -> dict[str, int]:
        """The maximum for the log of an update, once memory has run out."""
        return {_LOGGED: self._rows} if self._automatic and self._rows else {}

    def of(self, count: int) -> int:
        """Rows of a forward pass over a batch of `count` rows."""
        self._largest = min(count, self._rows or count)
        return self._largest

    def chunks(self, positions: Sequence[int]) -> list[list[int]]:
        """A batch as one part per forward pass."""
        size = self.of(len(positions))
        return [list(positions[start : start + size]) for start in range(0, len(positions), size)]

    def whole(self, count: int) -> int:
        """`count`, for a batch that takes one forward pass; `halve` then fails."""
        self._largest = 1
        return count

    def halve(self) -> bool:
        """Halves the rows of the last batch; False where the number is fixed or 1."""
        if not self._automatic or self._largest == 1:
            return False
        self._rows = self._largest // 2
        return True


@contextmanager
def memory_remedy(what: str, remedy: str) -> Iterator[None]:
    """Inside, exhausted memory is one line that names the settings that help.

    Args:
        what: the work, such as `the repair`.
        remedy: the settings to change.

    Raises:
        SeawallError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SeawallError(f"memory ran out in {what}", remedy=remedy) from error
