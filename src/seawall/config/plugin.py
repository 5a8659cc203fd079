"""Names of plugins: code of other packages, by entry point or by module and function."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from seawall.config.base import wrong

_MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_ENTRY = r"[A-Za-z0-9]([\w.-]*\w)?/\w([\w.-]*\w)?"
_NAME = rf"^({_ENTRY}|{_MODULE})$"

PLUGIN_FORMS = "package/name or module:function of a plugin"
"""Completes "expected ..." in messages."""


def is_plugin(name: str) -> bool:
    """Whether a name has the form of a plugin's."""
    return len(name) <= 200 and re.fullmatch(_NAME, name) is not None


def names_module(name: str) -> bool:
    """Whether a plugin is named by `module:function`, so that the recipe alone decides what is imported."""
    return ":" in name


def _plugin_name(name: str) -> str:
    if not is_plugin(name):
        raise wrong(PLUGIN_FORMS)
    return name


def _option(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise wrong("text, a number, true or false") from None


PluginName = Annotated[str, AfterValidator(_plugin_name), Field(json_schema_extra={"pattern": _NAME})]
"""`package/name` of an installed entry point, or `module:function`. Reading a recipe imports neither."""

PluginOptions = dict[str, Annotated[bool | int | float | str, WrapValidator(_option)]]
"""Keyword arguments of a plugin."""
