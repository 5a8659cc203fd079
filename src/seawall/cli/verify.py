"""`seawall verify`: exit code 0 if a served model is the local one, or a folder the signed one; else 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries, results_console
from seawall.errors import ConfigError
from seawall.visible import visible_line

if TYPE_CHECKING:
    from seawall.evaluation.served.view import Verification
    from seawall.formats.signers import TrustedSigner
    from seawall.jobs.verify import Server

_Name = Optional[str]  # noqa: UP045 - typer reads these annotations
_File = Optional[Path]  # noqa: UP045
_Files = Optional[list[Path]]  # noqa: UP045
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def verify(  # noqa: PLR0913 - a parameter for each option
    target: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="Run with an exported checkpoint, `lab`, a folder, or a Hub id."),
    ],
    *,
    endpoint: Annotated[
        _Name, typer.Option(metavar="URL", help="Address of an OpenAI-compatible endpoint, with /v1.")
    ] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Start vLLM on the model, compare, and end it.")] = False,
    model: Annotated[
        _Name, typer.Option("--model", "-m", help="The model's name at the endpoint; default: its only model.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=256, help="Number of probe prompts.")] = 16,
    dtype: Annotated[
        str,
        typer.Option(
            help="Type in which both sides compute: float32, bfloat16 or float16; auto: the checkpoint's own here, "
            "inferred for an endpoint."
        ),
    ] = "auto",
    key_env: Annotated[_Name, typer.Option(help="Environment variable with the endpoint's API key.")] = None,
    vllm_program: Annotated[
        str,
        typer.Option(envvar="SEAWALL_VLLM", help="The `vllm` command, or the Python of vLLM's environment."),
    ] = "vllm",
    timeout: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds for one request, and for the start of vLLM.")
    ] = 600.0,
    signature: Annotated[
        _File, typer.Option(metavar="FILE", help="Check the folder against this signature, and no server.")
    ] = None,
    public_key: Annotated[_File, typer.Option(metavar="PEM", help="With --signature: the signer's public key.")] = None,
    chain: Annotated[
        _Files, typer.Option("--chain", metavar="PEM", help="With --signature: certificates to trust; repeatable.")
    ] = None,
    identity: Annotated[_Name, typer.Option(help="With --signature: the signer's identity at Sigstore.")] = None,
    issuer: Annotated[_Name, typer.Option(help="With --identity: the OpenID issuer.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a served model is the local model, or that a folder is the signed one.

    A server: sends probe prompts by token ids, chosen so that they use many
    experts, and compares log probabilities and greedy replies. The rule
    depends on the precision of the server: docs/verify.md. --signature: names
    every file that was changed, deleted or added since the folder was signed.
    """
    trusted = _trusted_signer(public_key, chain, identity, issuer)
    if signature is not None:
        if vllm or endpoint is not None:
            raise ConfigError("--signature checks files, not a server", remedy="leave out --endpoint and --vllm")
        _check_signature(Path(target), signature, trusted, as_json=as_json)
        return
    if trusted is not None:
        raise ConfigError("--public-key, --chain, --identity and --issuer need --signature", got="no --signature")
    if vllm == (endpoint is not None):
        raise ConfigError(
            "verify needs one server",
            got="--vllm and --endpoint" if vllm else "neither --endpoint nor --vllm",
            remedy="add --endpoint URL, or --vllm to start one; --signature FILE checks a signed folder",
        )
    if dtype not in _DTYPES:
        raise ConfigError("--dtype is wrong", got=dtype, expected=", ".join(_DTYPES))
    with quiet_libraries():
        from seawall.evaluation.served.view import verdict_lines
        from seawall.jobs.verify import Server, verification_table

    server = Server(endpoint, model, key_env, vllm_program, timeout)
    result = _verify(target, server, prompts=prompts, dtype=dtype, as_json=as_json)
    if as_json:
        print_json(result.document())
    else:
        console = results_console()
        console.print(verification_table(result))
        for line in verdict_lines(result):
            console.print(line, soft_wrap=True)
    if not result.passed:
        raise typer.Exit(1)


def _verify(target: str, server: Server, *, prompts: int, dtype: str, as_json: bool) -> Verification:
    from seawall.jobs.verify import verify as compare
    from seawall.runs.progress import Quiet, TerminalReporter

    if as_json:
        return compare(target, server, prompts=prompts, dtype=dtype, reporter=Quiet())
    with TerminalReporter() as reporter:
        return compare(target, server, prompts=prompts, dtype=dtype, reporter=reporter)


def _trusted_signer(
    public_key: Path | None, chain: list[Path] | None, identity: str | None, issuer: str | None
) -> TrustedSigner | None:
    """The one signer that the options name; None without any.

    Raises:
        ConfigError: several signers, or half of an identity.
    """
    from seawall.formats.signers import TrustedSigner

    if (identity is None) != (issuer is None):
        raise ConfigError("an identity at Sigstore needs its issuer", expected="--identity and --issuer")
    signers = (public_key is not None) + bool(chain) + (identity is not None)
    if signers > 1:
        raise ConfigError("got several trusted signers", expected="--public-key, --chain, or --identity with --issuer")
    return TrustedSigner(public_key, tuple(chain or ()), identity, issuer) if signers else None


def _check_signature(folder: Path, signature: Path, trusted: TrustedSigner | None, *, as_json: bool) -> None:
    """Prints the check of a signed folder; ends with exit code 1 where it fails."""
    from dataclasses import asdict

    if trusted is None:
        raise ConfigError(
            "--signature needs a trusted signer", expected="--public-key, --chain, or --identity with --issuer"
        )
    with quiet_libraries():
        from seawall.formats.signature import check_signature

    result = check_signature(folder, signature, trusted)
    if as_json:
        print_json({**asdict(result), "passed": result.passed})
    else:
        for line in result.lines():
            typer.echo(visible_line(line))
    if not result.passed:
        raise typer.Exit(1)
