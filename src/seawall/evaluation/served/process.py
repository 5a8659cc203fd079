"""A vLLM server of our own: started on a free port of this machine, and ended with all its workers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from seawall.distributed.process import environment_alone
from seawall.errors import ConfigError
from seawall.evaluation.served import keeper
from seawall.visible import visible_line

SERVED_NAME = "seawall-verify"
_POLL = 0.5
_LOG_LINES = 3
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""The server of a private model reports nothing and downloads nothing."""
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""GiB of the cache on a CPU, where vLLM would take a share of all memory; threads as OMP_NUM_THREADS says."""


@contextmanager
def vllm_server(
    program: str,
    folder: Path,
    *,
    dtype: str,
    length: int,
    seconds: float,
    options: Sequence[str] = ("--enforce-eager",),
) -> Iterator[str]:
    """The base URL of a vLLM server, inside `with`. The server ends with this process, also where that is killed.

    Args:
        program: the `vllm` command, or the Python of vLLM's environment.
        folder: the checkpoint.
        dtype: type of the computation, by vLLM's name.
        length: maximum tokens of a sequence.
        seconds: how long to wait until the server answers.
        options: further words of the command.

    Raises:
        ConfigError: there is no such program, or the server ends or stays silent.
    """
    port = _free_port()
    words = [*server_command(program), str(folder), "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--max-model-len", str(length), "--served-model-name", SERVED_NAME, *options]
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "vllm.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(keeper.__file__)), *words],
                stdin=subprocess.PIPE,  # its end tells the keeper that this process has ended
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_QUIET, **_CPU, **environment_alone()},
                start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
            )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log, seconds)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(process)


def server_command(program: str) -> list[str]:
    """The words that start a server: of the `vllm` command, or of a Python that has vLLM.

    Raises:
        ConfigError: there is no such program.
    """
    path = shutil.which(program)
    if path is None:
        raise ConfigError(
            "there is no vLLM to start",
            got=f"no program {program}",
            expected="the command `vllm`, or the Python of an environment with vLLM",
            remedy="install vLLM in an environment of its own, and name it with --vllm-program or SEAWALL_VLLM",
        )
    is_python = Path(program).name.startswith("python")
    return [path, "-m", "vllm.entrypoints.cli.main", "serve"] if is_python else [path, "serve"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], health: str, log: Path, seconds: float) -> None:
    """Returns when the server answers."""
    deadline = time.monotonic() + seconds
    with httpx2.Client(timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ConfigError(
                    "vLLM ended before it answered", got=_last_lines(log), remedy="run its command by hand to see why"
                )
            if _answers(client, health):
                return
            time.sleep(_POLL)
    raise ConfigError(
        f"vLLM does not answer within {seconds:g} seconds",
        got=_last_lines(log),
        remedy="raise --timeout, or start the server yourself and name it with --endpoint",
    )


def _answers(client: httpx2.Client, health: str) -> bool:
    try:
        return client.get(health).status_code == 200
    except httpx2.RequestError:
        return False


def _last_lines(log: Path) -> str:
    """The end of the log; lines with an error first, because a traceback of the parent follows that of the worker."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "See root cause" not in line]
    return visible_line(" | ".join((errors or lines)[-_LOG_LINES:])[-600:]) or "no output"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tells the keeper to end the server and its workers, and waits for it."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
