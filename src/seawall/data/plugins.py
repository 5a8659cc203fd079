"""Imports plugins: attacks, judges and prompt sources of other packages.

Code is imported where prompts are read and a judge is made, from names of the user's recipe, and by
`seawall doctor --plugins`. Reading results (report, diff, gate) imports none.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

from seawall.config.plugin import names_module
from seawall.errors import ConfigError, DataError, SeawallError

PluginKind = Literal["attack", "judge", "source"]
GROUPS: Mapping[PluginKind, str] = {
    "attack": "seawall.attacks",
    "judge": "seawall.judges",
    "source": "seawall.prompt_sources",
}
"""Groups of entry points by kind of plugin."""


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What a plugin is, for fingerprints and the manifest.

    Attributes:
        kind: attack, judge or source.
        name: as the recipe names it.
        target: `module:function`.
        distribution, version: of the installed package; empty for a module of none.
        digest: sha256 over the Python files of the module's top-level package; empty where it has none.
    """

    kind: PluginKind
    name: str
    target: str
    distribution: str
    version: str
    digest: str

    @property
    def label(self) -> str:
        """The plugin in messages."""
        return f"{self.kind} plugin {self.name}"


@dataclass(frozen=True, eq=False)
class Plugin:
    """An imported plugin."""

    record: PluginRecord
    function: Callable[..., Any]

    @contextmanager
    def running(self) -> Iterator[Callable[..., Any]]:
        """Inside, the plugin's function may be called; whatever it raises is one line that names the plugin.

        Raises:
            DataError: the function raised an error.
        """
        with _ForeignCode(f"{self.record.label} failed", DataError):
            yield self.function

    def error(self, what: str, *, got: object = None, expected: object = None) -> DataError:
        """An error about what the plugin returned."""
        return DataError(f"{self.record.label}: {what}", got=got, expected=expected, remedy="correct the plugin")


@dataclass(frozen=True, slots=True)
class PluginCheck:
    """An installed entry point, and the reason why it does not load; empty where it does."""

    record: PluginRecord
    problem: str = ""


class _ForeignCode:
    """Turns every error of foreign code into one of seawall's: a plugin may raise anything, and it is no defect here.

    Errors of seawall pass, and so do interruptions, which are no `Exception`.
    """

    def __init__(self, what: str, error_type: type[SeawallError], remedy: str | None = None) -> None:
        self._what, self._error_type, self._remedy = what, error_type, remedy

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, SeawallError):
            got = f"{type(error).__name__}: {error}{_place(trace)}"
            raise self._error_type(self._what, got=got, remedy=self._remedy) from error


def _place(trace: TracebackType | None) -> str:
    """The last line outside this module and the import system that the error went through, as ` at file:line`."""
    place = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<") and Path(name).parent.name != "importlib":
            place = f" at {name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


@cache
def load_plugin(kind: PluginKind, name: str) -> Plugin:
    """Imports a plugin; once per process.

    Args:
        kind: selects the group of entry points.
        name: `package/name` of an entry point, or `module:function`; modules of the current folder are found last.

    Raises:
        ConfigError: no such entry point or module, an error at its import, or no function.
    """
    if not names_module(name):
        return _imported(kind, name, _entry_point(kind, name))
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that no file of this folder hides an installed module
    return _imported(kind, name, metadata.EntryPoint(name, name, GROUPS[kind]))


def installed_plugins() -> list[PluginCheck]:
    """Every installed entry point of seawall's groups, imported to see whether it loads."""
    checks = []
    for kind, group in GROUPS.items():
        for entry in sorted(metadata.entry_points(group=group), key=_full_name):
            try:
                checks.append(PluginCheck(_imported(kind, _full_name(entry), entry).record))
            except SeawallError as error:
                distribution, version = _distribution(entry)
                record = PluginRecord(kind, _full_name(entry), entry.value, distribution, version, "")
                checks.append(PluginCheck(record, str(error)))
    return checks


def _entry_point(kind: PluginKind, name: str) -> metadata.EntryPoint:
    package, _, entry_name = name.partition("/")
    entries = metadata.entry_points(group=GROUPS[kind])
    for entry in entries:
        if entry.name == entry_name and _normal(_distribution(entry)[0]) == _normal(package):
            return entry
    names = sorted(map(_full_name, entries))
    near = get_close_matches(name, names, n=1)
    raise ConfigError(
        f"{kind} plugin {name} is not installed",
        expected=f"an entry point of {GROUPS[kind]}: {', '.join(names) or 'none is installed'}",
        remedy=f"did you mean {near[0]}?" if near else "`seawall doctor --plugins` lists what is installed",
    )


def _imported(kind: PluginKind, name: str, entry: metadata.EntryPoint) -> Plugin:
    label = f"{kind} plugin {name}"
    remedy = "install its package in this environment, or start seawall in the folder of the module"
    remedy = remedy if names_module(name) else "install its package again"
    with _ForeignCode(f"{label} cannot be imported", ConfigError, remedy):
        module = importlib.import_module(entry.module)
    value: Any = module
    for attribute in entry.attr.split("."):
        value = getattr(value, attribute, None)
    if not callable(value):
        raise ConfigError(
            f"{label} is no function",
            got=f"{type(value).__name__} {entry.attr} in {module.__name__}" if value is not None else "nothing",
            expected=f"a function {entry.attr} in {entry.module}",
        )
    distribution, version = _distribution(entry) if entry.dist is not None else _distribution_of(module)
    return Plugin(PluginRecord(kind, name, entry.value, distribution, version, _digest(module)), value)


def _full_name(entry: metadata.EntryPoint) -> str:
    return f"{_distribution(entry)[0]}/{entry.name}"


def _distribution(entry: metadata.EntryPoint) -> tuple[str, str]:
    return ("", "") if entry.dist is None else (entry.dist.name, entry.dist.version)


def _distribution_of(module: ModuleType) -> tuple[str, str]:
    """Name and version of the distribution that installed a module; empty for a file of no distribution."""
    names = metadata.packages_distributions().get(module.__name__.partition(".")[0], ())
    return (names[0], metadata.version(names[0])) if names else ("", "")


def _normal(distribution: str) -> str:
    """The name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _digest(module: ModuleType) -> str:
    """sha256 over the files of the top-level package, so that a change in a helper module is noticed too."""
    top = sys.modules[module.__name__.partition(".")[0]]
    files = [(folder, path) for folder in map(Path, getattr(top, "__path__", ())) for path in folder.rglob("*.py")]
    file = getattr(top, "__file__", None)
    if not files and file is not None:
        files = [(Path(file).parent, Path(file))]
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for folder, path in files
        if path.is_file()
    )
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}" if lines else ""
