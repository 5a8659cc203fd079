"""Signatures of folders, in the format of OpenSSF Model Signing (`model-signing`, Apache-2.0): a Sigstore bundle.

The bundle holds a SHA-256 digest of every file and one signature over all of them, so a changed, deleted or added file
is found and named. Written for model-signing 1.1.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.errors import ArtifactError
from seawall.formats.signers import (
    SigningKey,
    TrustedSigner,
    problem_of,
    refusing,
    require_signing,
    signing_config,
    verifying_config,
)
from seawall.runs.files import publish, storage_errors
from seawall.runs.lock import LOCK, OWNER

SUFFIX = ".sig"
_MISMATCH = "Signature mismatch: "
"""Begins the message of model-signing where the signature is valid and the files are others."""
_GIT = (".git", ".gitattributes", ".github", ".gitignore")
"""Paths that model-signing leaves out."""


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """The check of a folder against its signature.

    Attributes:
        folder, signature: the paths.
        files: number of signed files.
        ignored: paths in the folder that the signature does not cover.
        problem: why the signature itself is not accepted; None where it is.
        changed, deleted, added: files that differ from the signed ones, sorted.
    """

    folder: str
    signature: str
    files: int = 0
    ignored: tuple[str, ...] = ()
    problem: str | None = None
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the folder is what was signed, by an accepted signer."""
        return self.problem is None and not (self.changed or self.deleted or self.added)

    def lines(self) -> list[str]:
        """The result in words: a line per file that differs, then the verdict."""
        if self.problem is not None:
            return [f"FAILED  the signature is not accepted: {self.problem}"]
        kinds = {"changed": self.changed, "deleted": self.deleted, "added": self.added}
        lines = [f"{kind}  {name}" for kind, names in kinds.items() for name in names]
        left_out = f", not covered: {', '.join(self.ignored)}" if self.ignored else ""
        return [*lines, f"{'passed' if self.passed else 'FAILED'}  {self.files} signed files{left_out}"]


def sign_folder(folder: Path, signer: SigningKey, output: Path | None = None) -> Path:
    """Signs every file of a folder: a run, a checkpoint, a delta; returns the signature's path.

    Args:
        folder: the folder; symbolic links in it are refused, since what they point to can change.
        signer: the key.
        output: file for the signature; None takes `FOLDER.sig` beside the folder.

    Raises:
        ConfigError: the key cannot be read, or model-signing is not installed.
        ArtifactError: no folder, an empty one, one with a symbolic link, or the signature exists.
    """
    require_signing()
    require_folder(folder)
    path = folder.resolve().with_name(f"{folder.resolve().name}{SUFFIX}") if output is None else output
    if path.exists():
        raise ArtifactError(f"{path} already exists", remedy="remove it, or name another file with --output")
    if not path.parent.is_dir():
        raise ArtifactError(f"{path} cannot be written", got="no such folder", remedy="name a file with --output")
    config = signing_config(signer).set_hashing_config(_hashing(folder, path))
    scratch = path.with_name(f".{path.name}.part")
    with storage_errors(path.parent):
        try:
            refusing(lambda: config.sign(folder, scratch), f"{folder} cannot be signed")
            publish(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    return path


def check_signature(folder: Path, signature: Path, trusted: TrustedSigner) -> SignatureCheck:
    """Checks a folder against a signature of ours or of the `model_signing` command.

    Raises:
        ConfigError: the public key or certificate cannot be read, or model-signing is not installed.
        ArtifactError: no folder, or the file is no signature.
    """
    require_signing()
    require_folder(folder)
    statement = _statement(signature)
    config = verifying_config(trusted)
    problem = problem_of(lambda: config.verify(folder, signature))
    if problem is not None and not problem.startswith(_MISMATCH):
        return SignatureCheck(str(folder), str(signature), problem=problem)
    settings = statement["predicate"]["serialization"]
    sharded = settings["method"] == "shards"
    signed = _by_file({row["name"]: row["digest"] for row in statement["predicate"]["resources"]}, sharded=sharded)
    present = signed if problem is None else _by_file(_digests(folder, settings), sharded=sharded)
    return SignatureCheck(
        str(folder),
        str(signature),
        files=len(signed),
        ignored=tuple(name for name in _ignored(settings) if (folder / name).exists()),
        changed=tuple(sorted(name for name in signed.keys() & present.keys() if signed[name] != present[name])),
        deleted=tuple(sorted(signed.keys() - present.keys())),
        added=tuple(sorted(present.keys() - signed.keys())),
    )


def require_folder(folder: Path) -> None:
    """Checks that there is a folder with files.

    Raises:
        ArtifactError: there is none.
    """
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        got = "a file" if folder.is_file() else "an empty folder" if folder.is_dir() else "no such folder"
        raise ArtifactError(
            f"{folder} cannot be signed or checked", got=got, expected="a folder of files: a run, a checkpoint, a delta"
        )


def _hashing(folder: Path, signature: Path) -> Any:
    """What is hashed: all files but the signature itself and a run's lock."""
    from model_signing import hashing

    ignored = [name for name in (LOCK, OWNER) if (folder / name).exists()]
    if signature.resolve().is_relative_to(folder.resolve()):
        ignored.append(signature.resolve().relative_to(folder.resolve()).as_posix())
    return hashing.Config().set_ignored_paths(paths=ignored)


def _statement(signature: Path) -> dict[str, Any]:
    """The signed statement of a bundle, not yet verified.

    Raises:
        ArtifactError: the file is no signature.
    """
    try:
        envelope = json.loads(signature.read_text("utf-8"))["dsseEnvelope"]
        statement: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
        dict(statement["predicate"]["serialization"])
        [(row["name"], row["digest"]) for row in statement["predicate"]["resources"]]
    except OSError as error:
        raise ArtifactError(f"{signature} cannot be read", got=error.strerror, expected="a signature file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{signature} is no signature of a folder", got=f"{type(error).__name__}: {error}", expected="a bundle"
        ) from error
    return statement


def _ignored(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*map(str, settings.get("ignore_paths", ())), *_GIT]))


def _digests(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The digests of the folder's files, hashed as the signed ones were."""
    from model_signing import hashing

    common = {"hashing_algorithm": settings["hash_type"], "allow_symlinks": settings["allow_symlinks"]}
    config = hashing.Config().set_ignored_paths(paths=settings.get("ignore_paths", ()))
    if settings["method"] == "shards":
        config.use_shard_serialization(**common, shard_size=settings["shard_size"])
    else:
        config.use_file_serialization(**common)
    return {row.identifier: row.digest.digest_hex for row in config.hash(folder).resource_descriptors()}


def _by_file(digests: Mapping[str, str], *, sharded: bool) -> dict[str, dict[str, str]]:
    """File -> its digests; a shard is called `FILE:start:end`."""
    files: dict[str, dict[str, str]] = {}
    for name, digest in digests.items():
        files.setdefault(name.rsplit(":", 2)[0] if sharded else name, {})[name] = digest
    return files
