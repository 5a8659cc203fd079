"""Running the command line, and other programs in Python, in processes of their own, as a user does."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TextIO

from places import TESTS

COMMAND = [sys.executable, "-c", "from seawall.cli import main; main()"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

Kind = Literal["fresh", "loaded"]
"""Of `command_server.py`: whether a fork imports the modules of seawall by itself, or has them already."""
SERVER = "SEAWALL_TEST_COMMANDS"
"""The variable that tells forks of a server, and processes that share one, where it listens."""


def seawall(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that starts Python, which takes seconds: for what may hang on how the libraries are imported."""
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def fresh(
    *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The same in a process that has torch and transformers already, and no module of seawall's layers."""
    words = list(map(str, arguments))
    return _start("fresh", ["seawall", *words], environment=environment, cwd=cwd).wait()


def forked(*arguments: str | Path, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process that has seawall's modules too. A file of more than `largest_file` bytes finds no room."""
    return start(*arguments, largest_file=largest_file).wait()


def forked_script(
    script: Path,
    *arguments: str | Path,
    text: str = "",
    kind: Kind = "loaded",
    environment: Mapping[str, str] = ENVIRONMENT,
) -> str:
    """The standard output of a script; `text` is its standard input."""
    words = [str(script), *map(str, arguments)]
    done = _start(kind, words, script=script, text=text, environment=environment).wait()
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path, saying: str) -> None:
    """Exit code 2 and one line that holds `saying`; no traceback."""
    done = forked(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert saying in lines[-1]
    assert len([line for line in lines if line.startswith("seawall: ")]) == 1


class FreshModules:
    """Stands for `subprocess` in a module that starts `python -m MODULE`: it runs as `fresh` runs commands."""

    def run(self, command: Sequence[str], *, env: Mapping[str, str], **settings: Any) -> Any:
        assert list(command[:2]) == [sys.executable, "-m"]
        assert settings == {"capture_output": True, "text": True, "check": False}
        return _start("fresh", list(command[2:]), module=command[2], environment=env).wait()


@dataclass(frozen=True)
class Started:
    """A forked program that may not be over yet."""

    arguments: list[str]
    process: int
    lines: TextIO
    folder: TemporaryDirectory[str]

    def is_over(self) -> bool:
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        return False

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit status and what it wrote, when it is over."""
        with self.folder as folder, self.lines:
            status = _answer(self.lines)
            texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self.arguments, status, *texts)


def start(*arguments: str | Path, largest_file: int | None = None) -> Started:
    """Starts a command as `forked` does."""
    return _start("loaded", ["seawall", *map(str, arguments)], largest_file=largest_file)


def _start(
    kind: Kind,
    words: list[str],
    *,
    script: Path | None = None,
    module: str | None = None,
    text: str = "",
    environment: Mapping[str, str] = ENVIRONMENT,
    cwd: Path | None = None,
    largest_file: int | None = None,
) -> Started:
    folder = TemporaryDirectory()
    streams = {name: str(Path(folder.name) / name) for name in ("stdin", "stdout", "stderr")}
    Path(streams["stdin"]).write_text(text)
    server = server_folder()
    request = {
        "words": words,
        "script": None if script is None else str(script),
        "module": module,
        "environment": {**environment, SERVER: server},
        "cwd": str(cwd or Path.cwd()),
        "largest_file": largest_file,
        **streams,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{server}/{kind}")
        lines = connection.makefile("rw")
    lines.write(json.dumps(request) + "\n")
    lines.flush()
    return Started(words[1:], _answer(lines), lines, folder)


@cache
def server_folder() -> str:
    """The folder of the sockets `fresh` and `loaded` of the server, which this starts where `SERVER` names none."""
    if SERVER in os.environ:
        return os.environ[SERVER]
    folder = TemporaryDirectory()
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for listening, kind in ((first, "fresh"), (second, "loaded")):
            listening.bind(f"{folder.name}/{kind}")
            listening.listen()
        numbers = (first.fileno(), second.fileno())
        command = [sys.executable, str(TESTS / "command_server.py"), *map(str, numbers)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT, pass_fds=numbers)
    atexit.register(folder.cleanup)
    atexit.register(server.communicate)
    return folder.name


def _answer(lines: TextIO) -> int:
    line = lines.readline()
    assert line, "the server of commands has ended; its last words are above"
    return int(line)
