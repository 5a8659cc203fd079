"""Errors that a library raises as `Exception` itself, which no handler can name."""

from __future__ import annotations

from types import TracebackType
from typing import final


@final
class BareErrors:
    """Turns a bare `Exception` (tokenizers raises it for damaged files) into a RuntimeError; subclasses pass."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise RuntimeError(str(error)) from error
