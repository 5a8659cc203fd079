"""An uncaught error is a defect of seawall: exit code 70, one line to report, and the traceback in a private file."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from types import TracebackType

from seawall.errors import Interrupted
from seawall.visible import visible_line

DEFECT, NO_MEMORY, INTERRUPTED = 70, 2, 3
"""Exit codes. 70 is `EX_SOFTWARE` of sysexits.h."""
_LONGEST = 200


def report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook that ends the process with 70; with 2 where memory ran out, which is no defect.

    Raises:
        SystemExit: always; the interpreter ends with its code.
    """
    if issubclass(kind, KeyboardInterrupt | Interrupted):  # a second signal, while the first one was reported
        raise SystemExit(INTERRUPTED)
    if _is_out_of_memory(error):
        _write(
            "memory ran out; set smaller batch sizes (eval.batch_size, profile.batch_size, steer.batch_size), "
            "model.dtype=bfloat16 or model.device_map=auto, and run the same command again"
        )
        raise SystemExit(NO_MEMORY)
    text = "".join(traceback.format_exception(kind, error, trace))
    try:
        place = f"the traceback is in {_save(text)}"
    except OSError as problem:
        sys.stderr.write(visible_trace(text))
        place = f"the traceback is above, because no file could be written ({problem.strerror})"
    message = visible_line(" ".join(f"{kind.__name__}: {error}".split()))[:_LONGEST]
    _write(f"a defect of seawall, not of your input: {message}; {place}; please report both to the authors")
    raise SystemExit(DEFECT)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by Python's class, by the name of torch's, or by torch's message on the CPU."""
    by_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    messages = ("DefaultCPUAllocator", "out of memory")
    return by_class or (isinstance(error, RuntimeError) and any(message in str(error) for message in messages))


def visible_trace(text: str) -> str:
    """A traceback without hidden characters, its lines as they are."""
    return "".join(f"{visible_line(line)}\n" for line in text.split("\n"))


def _save(text: str) -> str:
    """Writes the traceback with the versions into a new file that only its owner can read; returns its path."""
    from seawall.runs.folder import environment

    facts = environment()
    versions = " ".join(f"{name} {version}" for name, version in facts["packages"].items())
    descriptor, path = tempfile.mkstemp(prefix="seawall-defect-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{versions}\npython {facts['python']} on {facts['system']}\n\n{visible_trace(text)}")
    return path


def _write(message: str) -> None:
    sys.stderr.write(f"seawall: {message}\n")
