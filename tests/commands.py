"""Running the command line in a process of its own, as a user does."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from places import TESTS

COMMAND = [sys.executable, "-c", "from seawall.cli import main; main()"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def seawall(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command that starts Python, which takes seconds: for what may hang on how a process begins."""
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=cwd)


def forked(*arguments: str | Path, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process that has its libraries already. A file of more than `largest_file` bytes finds no room."""
    return start(*arguments, largest_file=largest_file).wait()


def refused(*arguments: str | Path, saying: str) -> None:
    """Exit code 2 and one line that holds `saying`; no traceback."""
    done = forked(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert saying in lines[-1]
    assert len([line for line in lines if line.startswith("seawall: ")]) == 1


@dataclass(frozen=True)
class Started:
    """A forked command that may not be over yet. The next can start when it was waited for."""

    arguments: list[str]
    process: int
    folder: TemporaryDirectory[str]

    def is_over(self) -> bool:
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        return False

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit status and what it wrote, when it is over."""
        status = _answer(_server())
        with self.folder as folder:
            texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self.arguments, status, *texts)


def start(*arguments: str | Path, largest_file: int | None = None) -> Started:
    """Starts a command by a fork of `command_server.py`."""
    folder = TemporaryDirectory()
    words = [str(argument) for argument in arguments]
    streams = {name: str(Path(folder.name) / name) for name in ("stdout", "stderr")}
    request = {"words": words, "cwd": str(Path.cwd()), "largest_file": largest_file, **streams}
    server = _server()
    assert server.stdin is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Started(words, _answer(server), folder)


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "command_server.py")]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    atexit.register(server.communicate)
    return server


def _answer(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, "the server of commands has ended; its last words are above"
    return int(line)
