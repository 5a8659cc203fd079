"""Starts programs in processes of their own that need not import torch and transformers again: each is a fork of this.

Usage: command_server.py FRESH LOADED, two file descriptors of listening Unix sockets. A fork for FRESH has other
packages' modules alone, and imports those of seawall by itself as it needs them; one for LOADED has both. `main` tells
what a request is. The server ends with its standard input.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from seawall.cli import main
from seawall.cli.common import quiet_libraries

LIBRARIES = (
    "pydantic",
    "rich.console",
    "scipy.stats",
    "torch",
    "torch.distributed.tensor",
    "transformers",
    "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.glm4_moe.modeling_glm4_moe",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.trainer_utils",
)
MODULES = (
    "seawall.cli.app",
    "seawall.config.load",
    "seawall.jobs.audit",
    "seawall.jobs.diff",
    "seawall.jobs.evaluate",
    "seawall.jobs.export",
    "seawall.jobs.gate",
    "seawall.jobs.gene",
    "seawall.jobs.landscape",
    "seawall.jobs.plan",
    "seawall.jobs.report",
    "seawall.jobs.run",
    "seawall.jobs.steer",
    "seawall.jobs.tune",
    "seawall.jobs.verify",
    "seawall.methods.gene.tools",
)


def load(names: tuple[str, ...]) -> None:
    """Imports modules that all later forks share."""
    with quiet_libraries():
        for name in names:
            importlib.import_module(name)
    gc.freeze()


def become(request: dict[str, Any]) -> None:
    """Gives this process the program's folder, environment, streams, limit and words."""
    os.chdir(request["cwd"])
    for stream, name, mode in ((sys.stdin, "stdin", "rb"), (sys.stdout, "stdout", "wb"), (sys.stderr, "stderr", "wb")):
        with Path(request[name]).open(mode) as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    importlib.invalidate_caches()
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = request["words"]


def fork_for(connection: socket.socket) -> dict[str, Any] | None:
    """Returns a request in the process that is to become its program; in the server's own, returns None at once.

    Between them is a process that writes the program's process number, and then its exit status, negative for the
    signal that ended it.
    """
    if os.fork() != 0:
        connection.close()
        return None
    with connection, connection.makefile("rw") as lines:
        request: dict[str, Any] = json.loads(lines.readline())
        process = os.fork()
        if process == 0:
            return request
        lines.write(f"{process}\n")
        lines.flush()
        lines.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
    os._exit(0)


def serve(listening: socket.socket) -> dict[str, Any] | None:
    """Forks for each request; returns in a forked process alone with its request, and with None at the end."""
    with listening:
        while True:
            ready, _, _ = select.select([sys.stdin, listening], [], [])
            if listening not in ready:
                return None
            request = fork_for(listening.accept()[0])
            if request is not None:
                return request
            _forget_ended()


def _forget_ended() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return


def run(request: dict[str, Any]) -> None:
    """Runs a `script` or a `module` as Python does, or the command line of seawall."""
    become(request)
    if request["script"] is not None:
        sys.path.insert(0, str(Path(request["script"]).parent))
        runpy.run_path(request["script"], run_name="__main__")
    elif request["module"] is not None:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        main()


if __name__ == "__main__":
    fresh, loaded = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    load(LIBRARIES)
    if os.fork() == 0:
        fresh.close()
        load(MODULES)
        asked = serve(loaded)
    else:
        loaded.close()
        asked = serve(fresh)
    if asked is not None:
        run(asked)
