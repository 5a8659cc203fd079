"""`seawall audit RUN|MODEL`: audits whether a repair is real, and what it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    JsonOption,
    QuietOption,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    reporting,
)

if TYPE_CHECKING:
    from seawall.artifacts.audit import AuditResult
    from seawall.runs.progress import Reporter

_LOG_WIDTH = 160
_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Text = Optional[str]  # noqa: UP045


def audit(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Folder of a finished run, or a model.")],
    *,
    only: Annotated[
        _Text, typer.Option(help="Audits to run, separated by commas; default: all.", metavar="A,B")
    ] = None,
    sets: SetOption = None,
    recipe: Annotated[_Path, typer.Option(help="For a model: the recipe that gives the prompts.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="For a model: folder for the results.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Audit a finished run and update its report, or audit a model without a repair."""
    is_run = _is_run(target)
    folder = _folder(target, recipe, output, is_run=is_run)
    with quiet_libraries():
        from seawall.jobs.audit import document

    def work(reporter: Reporter) -> list[AuditResult]:
        if is_run:
            return _audit_run(folder, reporter, only=only, sets=sets)
        return _audit_model(target, folder, reporter, only=only, sets=sets, recipe=recipe)

    with reporting(quiet=quiet or as_json) as reporter:
        results = work(reporter)
    if as_json:
        print_json(document(folder, results))
        return
    _show(results, folder, is_run=is_run)


def _audit_run(folder: Path, reporter: Reporter, *, only: str | None, sets: list[str] | None) -> list[AuditResult]:
    from seawall.jobs.audit import audit_run, parse_names

    return audit_run(folder, only=parse_names(only), changes=sets or (), reporter=reporter)


def _audit_model(
    model: str,
    folder: Path,
    reporter: Reporter,
    *,
    only: str | None,
    sets: list[str] | None,
    recipe: Path | None,
) -> list[AuditResult]:
    from seawall.jobs.audit import audit_model, parse_names

    names = parse_names(only)
    resolved, text = read_recipe(recipe, [*(sets or ()), f"model.id={json.dumps(model)}"])
    return audit_model(resolved, folder, text=text, only=names, reporter=reporter)


def _is_run(target: str) -> bool:
    from seawall.errors import RunFolderError

    path = Path(target)
    if path.is_dir() and not any((path / name).is_file() for name in ("resolved.json", "config.json")):
        raise RunFolderError(
            f"{target} is neither a run nor a model",
            got="a folder without resolved.json and config.json",
            expected="a folder that `seawall run` wrote, or a model",
            remedy="check the path",
        )
    return (path / "resolved.json").is_file()


def _folder(target: str, recipe: Path | None, output: Path | None, *, is_run: bool) -> Path:
    from seawall.errors import ConfigError

    if is_run and (recipe or output):
        raise ConfigError(
            f"{target} is a run",
            got="--recipe or --output",
            remedy="leave out these options: a run has its own recipe and folder",
        )
    if is_run:
        return Path(target)
    if output is None:
        raise ConfigError(
            f"{target} is no run folder, and the audit of a model needs --output",
            remedy="name a new folder with --output, or name the folder of a finished run",
        )
    return output


def _show(results: list[AuditResult], folder: Path, *, is_run: bool) -> None:
    from seawall.methods.audit.view import audit_table
    from seawall.runs.console import PlainConsole

    console = PlainConsole()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    for result in results:
        console.print(audit_table(result))
        console.print(result.claim)
    console.print(str(folder / "report.html" if is_run else folder / "audit"), soft_wrap=True)
