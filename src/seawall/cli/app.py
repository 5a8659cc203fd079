"""The verbs and what their exit codes mean: 0 done, 1 failed check, 2 wrong input, 3 interrupted and resumable."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from seawall.cli import apply, audit, diff, doctor, evaluate, gate, gene, landscape, plan, settings, stages, steer, tune
from seawall.errors import Interrupted, SeawallError

app = typer.Typer(
    name="seawall",
    help="Audit, repair and certify the safety of open-weight language models, mixture-of-experts first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(stages.run)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("settings")(settings.settings)
app.command("profile")(stages.profile)
app.command("select")(stages.select)
app.command("repair")(stages.repair)
app.command("eval")(evaluate.evaluate)
app.command("report")(stages.report)
app.command("apply")(apply.apply)
app.command("audit")(audit.audit)
app.command("steer")(steer.steer)
app.command("landscape")(landscape.landscape)
app.command("tune")(tune.tune)
app.add_typer(gene.app, name="gene")
app.command("gate")(gate.gate)
app.command("diff")(diff.diff)


def _version(wanted: bool) -> None:
    if wanted:
        from seawall.version import __version__

        typer.echo(f"seawall {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before the verb."""


def run() -> NoReturn:
    """Runs the command and turns what a user can meet into one line and an exit code.

    Ctrl-C and SIGTERM become an exception of our own, since the command line library has a meaning of its own for
    KeyboardInterrupt. Wrong options are its business: it prints them and exits with 2.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except SeawallError as error:
        _end(str(error), 2)
    except (KeyboardInterrupt, Interrupted):
        # Of several launched processes the others are ended when one is; one line is enough.
        if os.environ.get("RANK", "0") != "0":
            sys.exit(3)
        _end("interrupted; the same command goes on where it stopped", 3)
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"seawall: {message}\n")
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted
