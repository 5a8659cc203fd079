"""`seawall sign FOLDER --key KEY`: a signature over every file of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries
from seawall.errors import ConfigError
from seawall.visible import visible_line

_File = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Files = Optional[list[Path]]  # noqa: UP045
_Name = Optional[str]  # noqa: UP045


def sign(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, a checkpoint or a delta.")],
    *,
    key: Annotated[
        _File, typer.Option(metavar="PEM", help="Private key: elliptic curve P-256, P-384 or P-521.")
    ] = None,
    password_env: Annotated[_Name, typer.Option(help="Environment variable with the key's password.")] = None,
    certificate: Annotated[_File, typer.Option(metavar="PEM", help="Certificate of the key.")] = None,
    chain: Annotated[
        _Files,
        typer.Option("--chain", metavar="PEM", help="Certificates that vouch for it, up to the root; repeatable."),
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Sign with your identity at Sigstore, without a key; needs the network.")
    ] = False,
    output: Annotated[
        _File, typer.Option("--output", "-o", help="File for the signature; default: FOLDER.sig beside the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign every file of a folder, in the format of OpenSSF Model Signing.

    `seawall verify FOLDER --signature FILE` and the command `model_signing`
    check it. Needs `seawall[sign]`.
    """
    if sigstore == (key is not None):
        raise ConfigError(
            "seawall sign needs one signer",
            got="--key and --sigstore" if sigstore else "neither --key nor --sigstore",
            remedy="add --key PEM, or --sigstore",
        )
    if key is None and (certificate or chain or password_env):
        raise ConfigError("--certificate, --chain and --password-env need a key", got="no --key")
    if (certificate is None) == bool(chain):
        got = "--chain alone" if certificate is None else "--certificate alone"
        raise ConfigError("a certificate and its chain belong together", got=got, expected="--certificate and --chain")
    if certificate is not None and password_env is not None:
        raise ConfigError("--password-env cannot be used with --certificate", remedy="store the key without a password")
    with quiet_libraries():
        from seawall.formats.signature import sign_folder
        from seawall.formats.signers import SigningKey

    path = sign_folder(folder, SigningKey(key, password_env, certificate, tuple(chain or ())), output)
    if as_json:
        print_json({"folder": str(folder), "signature": str(path)})
    else:
        typer.echo(visible_line(str(path)))
