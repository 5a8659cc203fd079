"""The errors a user can meet: each says in one line what is wrong, what was got, what is expected, what to do."""

from __future__ import annotations


class SeawallError(ValueError):
    """Wrong input. The command line prints it as one line and exits with 2.

    Args:
        what: what is wrong, naming the file, key or object.
        got: what was found there.
        expected: what seawall can work with.
        remedy: what the user can do now.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class ConfigError(SeawallError):
    """A recipe or an option is wrong."""


class DataError(SeawallError):
    """A prompt file, a pair or a source is wrong."""


class UnsupportedModelError(SeawallError):
    """The model has no mixture-of-experts layer that seawall understands, or lacks what a stage needs."""


class ArtifactError(SeawallError):
    """A file that a stage left is missing, damaged or belongs to another model."""


class RunFolderError(SeawallError):
    """The run folder cannot be used: it holds another recipe's run, or it cannot be written."""


class NothingToRepairError(SeawallError):
    """No pair is left: the model refuses every attack already, or answers even the plain requests."""


class NothingToGraftError(SeawallError):
    """No layer is left: the examples turn all of a gene down."""


class Interrupted(BaseException):
    """Work was stopped and can be resumed by the same command. The command line exits with 3.

    No `Exception`, so that nothing that handles errors swallows it.
    """
