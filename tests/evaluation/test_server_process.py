"""A server that seawall starts ends with it and with all its workers, also where seawall is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SERVER = """
import os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {worker.pid}")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
CLIENT = """
import signal, sys
from pathlib import Path
from seawall.evaluation.served.process import vllm_server
with vllm_server(sys.argv[1], Path("."), dtype="float32", length=8, seconds=60):
    print("serving", flush=True)
    signal.pause()
"""


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/server.py "$@"\n')
    program.chmod(0o755)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PIDS": str(tmp_path / "pids"), "NO_PROXY": "127.0.0.1"},
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"serving\n"
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert all(map(is_running, pids))
    client.send_signal(number)
    client.communicate()
    assert until(lambda: not any(map(is_running, pids)))
