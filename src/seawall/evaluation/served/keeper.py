"""Runs a server for another process, and ends it with its workers when that process ends, however it ends.

    python keeper.py WORD...

The standard input is a pipe that the other process alone holds open, so it ends with that process, killed or not. This
file runs as a script, without the package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

GRACE = 20.0
"""Seconds after which a server that was told to end is killed."""


def main(words: list[str]) -> int:
    """Starts the server, and waits for its end; returns its exit code."""
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int = 0, frame: FrameType | None = None) -> None:
        threading.Thread(target=_end, args=(server,), daemon=True).start()

    # Handlers, not SIG_IGN, and after the start: a server inherits ignored signals.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    threading.Thread(target=_await_end_of_input, args=(end,), daemon=True).start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # workers that outlive the server
    return code if code >= 0 else 128 - code


def _await_end_of_input(end: Callable[[], None]) -> None:
    sys.stdin.buffer.read()
    end()


def _end(server: subprocess.Popen[bytes]) -> None:
    _signal(server, signal.SIGTERM)
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the server's process group."""
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:  # the whole group has ended
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
