"""`seawall audit RUN|MODEL`: is a repair real, and what does it rest on?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import JsonOption, SetOption, print_json, quiet_libraries, read_recipe

if TYPE_CHECKING:
    from seawall.artifacts.audit import AuditResult
    from seawall.runs.progress import Reporter

_LOG_WIDTH = 160
_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations


def audit(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A finished run's folder, or a model.")],
    *,
    only: Annotated[Optional[str], typer.Option(help="Some audits alone, by comma.", metavar="A,B")] = None,  # noqa: UP045
    sets: SetOption = None,
    recipe: Annotated[_Path, typer.Option(help="For a model: the recipe with its prompts.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="For a model: the folder for what is found.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a finished run (its report is written again), or a model that was not repaired."""
    is_run = _is_run(target)
    folder = _folder(target, recipe, output, is_run=is_run)
    with quiet_libraries():
        from seawall.jobs.audit import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> list[AuditResult]:
        return _audit(target, folder, reporter, only=only, sets=sets, recipe=None if is_run else (recipe,))

    if as_json:
        print_json(document(folder, work(Quiet())))
        return
    with TerminalReporter() as reporter:
        found = work(reporter)
    _show(found, folder, is_run=is_run)


def _audit(
    target: str,
    folder: Path,
    reporter: Reporter,
    *,
    only: str | None,
    sets: list[str] | None,
    recipe: tuple[Path | None] | None,
) -> list[AuditResult]:
    from seawall.jobs.audit import audit_model, audit_run, parse_names

    names = parse_names(only)
    if recipe is None:
        return audit_run(folder, only=names, changes=sets or (), reporter=reporter)
    read, text = read_recipe(recipe[0], [*(sets or ()), f"model.id={json.dumps(target)}"])
    return audit_model(read, folder, text=text, only=names, reporter=reporter)


def _is_run(target: str) -> bool:
    from seawall.errors import RunFolderError

    path = Path(target)
    if path.is_dir() and not any((path / name).is_file() for name in ("resolved.json", "config.json")):
        raise RunFolderError(
            f"{target} is neither a run nor a model",
            got="a folder without resolved.json and config.json",
            expected="the folder that `seawall run` left, or a model",
            remedy="check the path",
        )
    return (path / "resolved.json").is_file()


def _folder(target: str, recipe: Path | None, output: Path | None, *, is_run: bool) -> Path:
    from seawall.errors import ConfigError

    if is_run and (recipe or output):
        raise ConfigError(
            f"{target} is a run",
            got="--recipe or --output",
            remedy="leave them out: a run has its own recipe and folder",
        )
    if is_run:
        return Path(target)
    if output is None:
        raise ConfigError(
            f"{target} is no run folder, so it is audited as a model, which needs --output",
            remedy="name a new folder with --output, or the folder of a finished run",
        )
    return output


def _show(found: list[AuditResult], folder: Path, *, is_run: bool) -> None:
    from rich.console import Console

    from seawall.methods.audit.view import audit_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    for one in found:
        console.print(audit_table(one))
        console.print(one.claim, markup=False)
    console.print(str(folder / "report.html" if is_run else folder / "audit"), soft_wrap=True, markup=False)
