"""Starts commands in processes of their own that need not import torch and transformers again: each is a fork of this.

Reads one JSON object a line: the command's `words`, its folder `cwd`, the files `stdout` and `stderr`, and
`largest_file` in bytes or null. Writes the process's number when it is started, and its exit status when it is over,
negative for the signal that ended it. A forked process goes on as `seawall.cli.main` and ends as any other.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from seawall.cli import main
from seawall.cli.common import quiet_libraries

IMPORTED_BY_COMMANDS = (
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
    "transformers.models.glm4_moe.modeling_glm4_moe",
    "transformers.models.mixtral.modeling_mixtral",
)


def become(request: dict[str, Any]) -> None:
    """Gives this process the command's words, folder, streams and limit."""
    os.chdir(request["cwd"])
    for stream, target in ((sys.stdout, request["stdout"]), (sys.stderr, request["stderr"])):
        with Path(target).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    sys.argv = ["seawall", *request["words"]]
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def serve() -> dict[str, Any] | None:
    """Forks for each request; returns in a forked process alone with its request, and with None at the end."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return dict(json.loads(line))
        sys.stdout.write(f"{process}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    with quiet_libraries():
        for name in IMPORTED_BY_COMMANDS:
            importlib.import_module(name)
    gc.freeze()
    asked = serve()
    if asked is not None:
        become(asked)
        main()
