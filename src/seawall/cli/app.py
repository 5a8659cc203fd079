"""The commands and their exit codes.

0 done; 1 a failed check, and nothing else; 2 wrong input; 3 interrupted and resumable; 70 a defect of seawall.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.main import get_command

from seawall.cli import (
    apply,
    audit,
    diff,
    doctor,
    evaluate,
    export,
    gate,
    gene,
    judge,
    landscape,
    plan,
    settings,
    sign,
    stages,
    steer,
    tune,
    verify,
)
from seawall.cli.common import require_one_process
from seawall.cli.defects import report_defect
from seawall.errors import Interrupted, SeawallError
from seawall.launcher import is_launched
from seawall.visible import visible_line

WRONG_INPUT, INTERRUPTED = 2, 3
_PRECEDENCE = 15.0
"""Seconds for which a process of a launch holds back its error, which the first process mostly has too."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WrongUsage: Any = typer.BadParameter.__mro__[1]
"""The class of all errors about words of the command line, which typer does not export."""

app = typer.Typer(
    name="seawall",
    help="Audit, repair and certify the safety of open-weight language models, mixture-of-experts first.",
    no_args_is_help=True,
    add_completion=True,
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
app.command("judge")(judge.judge)
app.command("report")(stages.report)
app.command("apply")(apply.apply)
app.command("audit")(audit.audit)
app.command("steer")(steer.steer)
app.command("landscape")(landscape.landscape)
app.command("tune")(tune.tune)
app.add_typer(gene.app, name="gene")
app.add_typer(export.app, name="export")
app.command("gate")(gate.gate)
app.command("sign")(sign.sign)
app.command("verify")(verify.verify)
app.command("diff")(diff.diff)


def _version(requested: bool) -> None:
    if requested:
        from seawall.version import __version__

        typer.echo(f"seawall {__version__}")
        raise typer.Exit


SHARED = frozenset(
    {"run", "profile", "select", "repair", "eval", "report", "audit", "steer", "landscape", "tune", "gene"}
    | {"doctor", "settings"}
)
"""Commands that a launcher may start in several processes."""


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before the command."""
    if context.invoked_subcommand not in SHARED:
        require_one_process(f"seawall {context.invoked_subcommand}")


def run() -> NoReturn:
    """Runs the command, and turns errors for users into one line and an exit code.

    Ctrl-C and SIGTERM raise `Interrupted`, which no error handler of a library swallows.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    sys.excepthook = report_defect
    atexit.register(gc.freeze)  # else the last collection looks through all of torch and transformers: a second
    try:
        _obey_as_one(sys.argv[1:])
        sys.stdout.flush()
    except typer.Exit as end:
        _leave(end.exit_code)
    except SeawallError as error:
        _end(str(error), WRONG_INPUT)
    except _WrongUsage as error:
        _end(_usage(error), WRONG_INPUT)
    except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
        # The launcher ends all processes when one ends; one of them prints the message.
        if not _is_first():
            _leave(INTERRUPTED)
        reason = f": {error}" if str(error) else ""
        _end(f"interrupted{reason}; run the same command to resume", INTERRUPTED)
    except BrokenPipeError:
        _close_output()
        _leave(INTERRUPTED)
    _leave(0)


def _obey_as_one(words: list[str]) -> None:
    """`_obey`; an error of all launched processes is reported by the first, and the launcher ends the others.

    Raises:
        SeawallError: as the command's; in another process than the first, after the time that the first one needs.
    """
    try:
        _obey(words)
    except SeawallError:
        if not _is_first():
            time.sleep(_PRECEDENCE)
        raise


def _is_first() -> bool:
    return not is_launched() or os.environ.get("RANK", "0") == "0"


def _obey(words: list[str]) -> None:
    """Runs a command without the library's own exit codes, of which 1 is for a reader that has gone."""
    command = get_command(app)
    with command.make_context("seawall", words) as context:
        command.invoke(context)


def _end(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"seawall: {visible_line(message)}\n")
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process; its work is over, so a signal changes the exit code no more.

    Signals are ignored at the interpreter's exit and not before: a program that calls `main` goes on with its own.
    """
    atexit.register(_ignore_signals)
    sys.exit(code)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _usage(error: Any) -> str:
    """One line about wrong words of the command line."""
    context = getattr(error, "ctx", None)
    command = "seawall" if context is None else context.command_path
    message = error.format_message().rstrip(".") or "no command is named"  # the library has printed the help
    return f"{message}; try `{command} --help`"


def _close_output() -> None:
    """Ends writing to a reader that has gone, so that the interpreter does not fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted
