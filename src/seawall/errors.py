"""The errors for users: each states in one line what is wrong, the value got, the values expected, and a remedy."""

from __future__ import annotations

import re

_KEY = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|r8|tgp|ghp|gho|ghs|github_pat|glpat|nvapi|AKIA|ASIA|AIza|ya29|eyJ)"
    r"(?=[\w.-]*\d)(?=[\w.-]*[A-Za-z])[\w.-]{16,}"
)
"""API keys by the prefixes of well-known services; a key may be pasted where a name belongs."""


class SeawallError(ValueError):
    """Wrong input. The command line prints the message as one line and exits with 2.

    Args:
        what: the problem, with the file, key or object concerned.
        got: the value found.
        expected: the values accepted.
        remedy: what the user can do.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__(without_keys("; ".join(" ".join(part.split()) for part in parts)))


def without_keys(text: str) -> str:
    """The text with API keys of well-known services replaced, because messages are logged and shared."""
    return _KEY.sub("(a key, not shown)", text)


class ConfigError(SeawallError):
    """A recipe or an option is wrong."""


class DataError(SeawallError):
    """A prompt file, a pair or a source is wrong."""


class UnsupportedModelError(SeawallError):
    """The model has no mixture-of-experts layer that seawall supports, or lacks something that a stage needs."""


class ArtifactError(SeawallError):
    """A stage's file is missing or damaged, or belongs to another model."""


class RunFolderError(SeawallError):
    """The run folder cannot be used: it holds another recipe's run, or cannot be written."""


class NothingToRepairError(SeawallError):
    """No pair is left to repair: the model already refuses every attack, or answers even the plain requests."""


class NothingToGraftError(SeawallError):
    """No layer is left to graft: the examples tune every coefficient of the gene to 0."""


class Interrupted(BaseException):
    """Work was interrupted; the same command resumes it. The command line exits with 3.

    Derives from BaseException, so that error handlers do not swallow it.
    """
