"""`seawall verify RUN|MODEL --endpoint URL`: exit code 0 if the served model is the local one, else 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries, results_console
from seawall.errors import ConfigError

if TYPE_CHECKING:
    from seawall.evaluation.served.view import Verification
    from seawall.jobs.verify import Server

_Name = Optional[str]  # noqa: UP045 - typer reads these annotations
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
    as_json: JsonOption = False,
) -> None:
    """Check that a served model is the local model, by log probabilities and greedy replies.

    Sends probe prompts by token ids, chosen so that they use many experts. The
    rule depends on the precision of the server: docs/verify.md.
    """
    if vllm == (endpoint is not None):
        raise ConfigError(
            "verify needs one server",
            got="--vllm and --endpoint" if vllm else "neither --endpoint nor --vllm",
            remedy="add --endpoint URL, or --vllm to start one",
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
