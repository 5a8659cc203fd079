"""0 done, 1 a failed check and nothing else, 2 wrong input, 3 interrupted, 70 a defect with its traceback in a file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ENVIRONMENT, seawall
from seawall.cli import main

BROKEN = """
import sys
import seawall.cli.gate
from seawall.errors import Interrupted, SeawallError

def broken():
    raise {error}

seawall.cli.gate.quiet_libraries = broken
sys.argv = ["seawall", "gate", "somewhere", "--max-asr", "0.1"]
from seawall.cli import main
main()
"""


def ended_by(error: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in which an error is raised; temporary files go to the folder."""
    code = [sys.executable, "-c", BROKEN.format(error=error)]
    environment = {**ENVIRONMENT, "TMPDIR": str(folder)}
    return subprocess.run(code, capture_output=True, text=True, check=False, env=environment)


def test_an_uncaught_error_is_70_one_line_and_a_private_file(tmp_path: Path) -> None:
    done = ended_by(r"KeyError('\x1b[31mred\n[bold]')", tmp_path)
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    assert line.startswith("seawall: a defect of seawall, not of your input: KeyError")
    (file,) = tmp_path.iterdir()
    assert str(file) in line
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "in broken" in text
    assert "transformers" in text
    assert "\x1b" not in text + done.stderr


FULL = """
import tempfile

def refuse(**options):
    raise OSError(28, "full")

tempfile.mkstemp = refuse
"""


def test_without_a_place_for_the_file_the_traceback_is_shown() -> None:
    code = [sys.executable, "-c", FULL + BROKEN.format(error="KeyError('x')")]
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "(full)" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        ("SeawallError('wrong')", 2, "wrong"),
        ("MemoryError()", 2, "memory ran out"),
        ("RuntimeError('DefaultCPUAllocator: cannot allocate')", 2, "memory ran out"),
        ("RuntimeError('MPS backend out of memory')", 2, "memory ran out"),
        ("Interrupted()", 3, "the same command"),
        ("KeyboardInterrupt()", 3, "the same command"),
    ],
)
def test_other_errors_are_one_line_and_no_file(error: str, code: int, word: str, tmp_path: Path) -> None:
    done = ended_by(error, tmp_path)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert word in line
    assert not [*tmp_path.iterdir()]


def test_a_reader_that_has_gone_is_an_interruption() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from seawall.cli import main; main()"
    words = [sys.executable, "-c", code, "settings"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gate"], "Missing argument"),
        (["no\x1b[31m\u202e[bold]such"], "No such command"),
        (["gate", "a", "b\x1b]0;title\x07"], "unexpected extra argument"),
        (["gate", "a", "--max-asr", "many"], "--max-asr"),
        (["gate", "a", "--no-such-option"], "--no-such-option"),
        (["gene", "nothing"], "No such command"),
    ],
)
def test_wrong_words_are_one_visible_line(words: list[str], text: str) -> None:
    done = seawall(*words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("seawall: ")
    assert text in line
    assert "--help" in line
    assert line.isprintable()


def test_no_words_print_the_help_and_are_wrong_input() -> None:
    done = seawall()
    assert done.returncode == 2
    assert "Commands" in done.stdout


def test_a_program_that_calls_main_goes_on_with_signals_that_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["seawall", "settings", "nosuch"])
    with pytest.raises(SystemExit):
        main()
    ignored = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]
    assert ignored == []
