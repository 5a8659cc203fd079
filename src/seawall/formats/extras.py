"""The optional packages that formats need."""

from __future__ import annotations

from importlib.util import find_spec

from seawall.errors import ConfigError


def require_extra(purpose: str, *, package: str, module: str, extra: str | None) -> None:
    """Checks that an optional package is installed.

    Args:
        purpose: what needs the package, as the subject of a sentence.
        package: its name at the package index.
        module: its top-level module.
        extra: the extra of seawall that installs it; None where none does.

    Raises:
        ConfigError: the package is not installed.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed",
            got=f"no package {module}",
            remedy=f"pip install {package}" if extra is None else f"pip install 'seawall[{extra}]'",
        )
