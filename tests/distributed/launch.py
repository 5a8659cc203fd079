"""Starts `seawall` commands in several processes of their own over gloo, as a launcher does, and waits for all.

Usage: launch.py PROCESSES FOLDER, then one command a line on standard input, as a JSON list of words. The streams of
process R of command C are FOLDER/C-R.out and FOLDER/C-R.err; the exit statuses are printed as JSON, one list a command.
A first word `kill:N` ends process 1 for real at its N-th update of a repair, and `kill:N:MODULE:FUNCTION` at the N-th
call of this function; with `exhaust` it asks there for more memory than there is. `commands.forked_script` runs this
where torch is imported already. Each process waits at most five minutes for the others, so a launch that hangs ends,
with other statuses.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch

import seawall.cli.app
import seawall.distributed.process
import seawall.methods.rasa.repair.run
import seawall.models.files.parity
from commands import FreshModules


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def fail_at_call(
    how: str, number: int, module: str = "seawall.methods.rasa.repair.team", function: str = "_update"
) -> None:
    """Lets this process end itself, or run out of memory, for real, at its N-th call of a function."""
    members = vars(importlib.import_module(module))
    work, calls = members[function], 0

    def work_or_fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == number:
            torch.empty(2**50)
        return work(*arguments)

    members[function] = work_or_fail


def become(words: list[str], *, rank: int, count: int, port: int, streams: Path) -> None:
    """Makes this process one of the launch's; ends it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()}, MASTER_ADDR="127.0.0.1")
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with streams.with_name(f"{streams.name}-{rank}.{name}").open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    vars(seawall.methods.rasa.repair.run)["CHECKPOINT_EVERY"] = 3
    vars(seawall.distributed.process)["_PATIENCE"] = timedelta(minutes=5)
    vars(seawall.cli.app)["_PRECEDENCE"] = 1.0
    vars(seawall.models.files.parity)["subprocess"] = FreshModules()
    how, *place = words[0].split(":")
    if how in ("kill", "exhaust"):
        words = words[1:]
    if how in ("kill", "exhaust") and rank == 1:
        fail_at_call(how, int(place[0]), *place[1:])
    sys.argv = ["seawall", *words]
    seawall.cli.app.run()


def end_as_one_of(words: list[str], *, rank: int, count: int, port: int, streams: Path) -> NoReturn:
    """`become`, without what the forked process would do at its end."""
    status = 70
    try:
        become(words, rank=rank, count=count, port=port, streams=streams)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0
    finally:
        if status == 70:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)


def launch(words: list[str], count: int, streams: Path) -> list[int]:
    """The exit statuses of the processes; negative for the signal that ended one."""
    port, processes = free_port(), []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            end_as_one_of(list(words), rank=rank, count=count, port=port, streams=streams)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


if __name__ == "__main__":
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    commands = [json.loads(line) for line in sys.stdin]
    statuses = [launch(words, count, folder / str(number)) for number, words in enumerate(commands)]
    sys.stdout.write(json.dumps(statuses))
