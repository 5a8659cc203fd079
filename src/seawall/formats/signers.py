"""Who signs, and whose signature is accepted: keys, certificates and Sigstore, as settings of model-signing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.errors import ConfigError, SeawallError
from seawall.formats.extras import require_extra


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs: a private key on disk, with its certificate where there is one; without a key, Sigstore.

    Attributes:
        key: PEM file of an elliptic-curve key (P-256, P-384 or P-521).
        password_env: environment variable with the key's password.
        certificate: PEM file of the key's certificate.
        chain: PEM files of the certificates that vouch for it.
    """

    key: Path | None = None
    password_env: str | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustedSigner:
    """Whose signature is accepted: a public key, the certificates of a root, or an identity at Sigstore."""

    public_key: Path | None = None
    chain: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None


def require_signing() -> None:
    """Refuses to go on without model-signing and pyOpenSSL."""
    require_extra("a signature", package="model-signing", module="model_signing", extra="sign")
    require_extra("a signature", package="pyopenssl", module="OpenSSL", extra="sign")


def signing_config(signer: SigningKey) -> Any:
    """The `Config` of model-signing for a signer.

    Raises:
        ConfigError: the key, its password or its certificates cannot be used.
    """
    from model_signing import signing

    config = signing.Config()
    if signer.key is None:
        return refusing(lambda: config.use_sigstore_signer(use_ambient_credentials=True), "Sigstore cannot be used")
    if signer.certificate is not None:
        files = {"private_key": signer.key, "signing_certificate": signer.certificate}
        return refusing(
            lambda: config.use_certificate_signer(**files, certificate_chain=signer.chain),
            "the key and its certificates cannot be used",
        )
    password = None if signer.password_env is None else _password(signer.password_env)
    return refusing(
        lambda: config.use_elliptic_key_signer(private_key=signer.key, password=password),
        f"{signer.key} is no private key that can sign",
    )


def _password(variable: str) -> bytes:
    if variable not in os.environ:
        raise ConfigError("--password-env names an environment variable that is not set", got=variable)
    return os.environ[variable].encode()


def verifying_config(trusted: TrustedSigner) -> Any:
    """The `Config` of model-signing for a trusted signer.

    Raises:
        ConfigError: the public key or the certificates cannot be used.
    """
    from model_signing import verifying

    config = verifying.Config()
    if trusted.public_key is not None:
        return refusing(
            lambda: config.use_elliptic_key_verifier(public_key=trusted.public_key),
            f"{trusted.public_key} is no public key",
        )
    if trusted.chain:
        return refusing(
            lambda: config.use_certificate_verifier(certificate_chain=trusted.chain), "the certificates cannot be used"
        )
    return refusing(
        lambda: config.use_sigstore_verifier(identity=trusted.identity, oidc_issuer=trusted.issuer),
        "Sigstore cannot be used",
    )


def refusing(work: Callable[[], Any], what: str) -> Any:
    """What `work` returns; its errors about keys, files and services are wrong input.

    Raises:
        ConfigError: `what`, with the library's reason.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from sigstore.errors import Error as SigstoreError

    try:
        return work()
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm, SigstoreError) as error:
        if isinstance(error, SeawallError):
            raise
        raise ConfigError(what, got=_words(error), expected="PEM files; elliptic-curve keys") from error
    except OSError as error:
        raise ConfigError(what, got=f"{error.strerror}: {error.filename}") from error


def problem_of(verify: Callable[[], Any]) -> str | None:
    """Why the verification fails; None where it passes."""
    from cryptography.exceptions import InvalidSignature
    from OpenSSL.crypto import X509StoreContextError
    from sigstore.errors import Error as SigstoreError

    try:
        verify()
    except InvalidSignature:
        return "its content was changed, or another key signed it"
    except (ValueError, TypeError, AttributeError, X509StoreContextError, SigstoreError) as error:
        return _words(error)
    return None


def _words(error: Exception) -> str:
    return f"{error}".strip() or type(error).__name__
