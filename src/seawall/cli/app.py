"""The commands and their exit codes: 0 done, 1 failed check, 2 wrong input, 3 interrupted and resumable."""

from __future__ import annotations

import atexit
import gc
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


def _version(requested: bool) -> None:
    if requested:
        from seawall.version import __version__

        typer.echo(f"seawall {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before the command."""


def run() -> NoReturn:
    """Runs the command, and turns errors for users into one line and an exit code.

    Ctrl-C and SIGTERM raise `Interrupted`, because the command line library handles KeyboardInterrupt itself. It also
    reports wrong options, with exit code 2.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    atexit.register(gc.freeze)  # else the last collection looks through all of torch and transformers: a second
    try:
        app()
    except SeawallError as error:
        _end(str(error), 2)
    except (KeyboardInterrupt, Interrupted):
        # The launcher ends all processes when one ends; one of them prints the message.
        if os.environ.get("RANK", "0") != "0":
            sys.exit(3)
        _end("interrupted; run the same command to resume", 3)
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"seawall: {message}\n")
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted
