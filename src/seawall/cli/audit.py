"""`seawall audit RUN|MODEL`: audits whether a repair is real, and what it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    DryRunOption,
    JsonOption,
    LimitOption,
    QuietOption,
    SetOption,
    print_json,
    print_limit,
    quiet_libraries,
    read_recipe,
    reporting,
    results_console,
    shared_launch,
    with_limit,
)
from seawall.cli.plan import show_plan

if TYPE_CHECKING:
    from seawall.artifacts.audit import AuditResult

_LOG_WIDTH = 160
_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Text = Optional[str]  # noqa: UP045


def audit(  # noqa: PLR0913 - each option of the command is a parameter
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Folder of a finished run, or a model.")],
    *,
    only: Annotated[
        _Text, typer.Option(help="Audits to run, separated by commas; default: all.", metavar="A,B")
    ] = None,
    sets: SetOption = None,
    limit: LimitOption = None,
    recipe: Annotated[_Path, typer.Option(help="For a model: the recipe that gives the prompts.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="For a model: folder for the results.")] = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Audit a finished run and update its report, or audit a model without a repair."""
    is_run = _is_run(target)
    folder = _folder(target, recipe, output, is_run=is_run, dry_run=dry_run)
    changes = with_limit(sets, limit)
    with quiet_libraries():
        from seawall.jobs.audit import audit_model, audit_run, audits_of, document, parse_names
        from seawall.shell.job import recipe_of_run

    names = parse_names(only)
    if is_run:
        resolved, text = recipe_of_run(folder, changes, section="audit")[0], ""
    else:
        resolved, text = read_recipe(recipe, [*changes, f"model.id={json.dumps(target)}"])
    if dry_run:
        show_plan(resolved, "audit", as_json=as_json, audits=audits_of(names, is_run=is_run))
        return
    with shared_launch(resolved), reporting(quiet=quiet or as_json) as reporter:
        if is_run:
            results = audit_run(folder, only=names, changes=changes, reporter=reporter)
        else:
            results = audit_model(resolved, folder, text=text, only=names, reporter=reporter)
    if as_json:
        print_json(document(folder, results))
        return
    _show(results, folder, is_run=is_run)
    print_limit(results_console(), resolved.data.limit)


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


def _folder(target: str, recipe: Path | None, output: Path | None, *, is_run: bool, dry_run: bool) -> Path:
    from seawall.errors import ConfigError

    if is_run and (recipe or output):
        raise ConfigError(
            f"{target} is a run",
            got="--recipe or --output",
            remedy="leave out these options: a run has its own recipe and folder",
        )
    if is_run:
        return Path(target)
    if output is None and not dry_run:
        raise ConfigError(
            f"{target} is no run folder, and the audit of a model needs --output",
            remedy="name a new folder with --output, or name the folder of a finished run",
        )
    return output or Path()


def _show(results: list[AuditResult], folder: Path, *, is_run: bool) -> None:
    from seawall.methods.audit.view import audit_table

    console = results_console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    for result in results:
        console.print(audit_table(result))
        console.print(result.claim)
    console.print(str(folder / "report.html" if is_run else folder / "audit"), soft_wrap=True)
