"""The base of all recipe sections: unknown keys, wrong types and non-finite numbers are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

Item = TypeVar("Item")
Tuple = Annotated[tuple[Item, ...], Field(strict=False)]
"""A list in YAML, a tuple in Python; items are strictly typed."""


class StrictModel(BaseModel):
    """Base of every section: frozen, no unknown keys, no silent conversion (`"16"` is not 16, `true` is not 1)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, data: Any) -> Any:
        """Reads null as the defaults: YAML gives null for a section whose keys are all commented out."""
        return {} if data is None else data


def wrong(expected: str, *, secret: bool = False) -> PydanticCustomError:
    """The error of a failed validation.

    Args:
        expected: completes "expected ..." in the user's message.
        secret: the value may be a key or hold a password, so no message shows it.
    """
    return PydanticCustomError(SECRET if secret else "seawall", "{expected}", {"expected": expected})


SECRET = "seawall_secret"
"""Type of the errors whose value is not shown."""
KeyPath = tuple[str | int, ...]


_MAX_ROWS = 4096


def _batch_size(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_ROWS:
        return value
    raise wrong(f"a number from 1 to {_MAX_ROWS}, or auto")


BatchSize = Annotated[int | Literal["auto"], PlainValidator(_batch_size)]
"""Rows of a forward pass: a number, or `auto`."""
