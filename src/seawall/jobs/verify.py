"""`seawall verify`: whether the model behind an endpoint is the local model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from seawall.config.endpoint import EndpointSettings
from seawall.config.load import checked_model
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError, RunFolderError
from seawall.evaluation.served.client import CompletionsClient, Served, served_name
from seawall.evaluation.served.probes import choose_probes, reply_length
from seawall.evaluation.served.process import SERVED_NAME, server_command, vllm_server
from seawall.evaluation.served.verdict import Precision, compare, repair_share
from seawall.evaluation.served.view import Verification, verification_rows
from seawall.jobs.facts import facts
from seawall.models.files.open import Checkpoint
from seawall.models.moe.find import find_moe_if_any
from seawall.models.reference import (
    Expert,
    Reference,
    log_probabilities,
    references,
    release_memory,
    with_rounding,
)
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.shell.model import open_checkpoint

NEW_TOKENS = 24
"""Maximum length of a greedy reply, in tokens."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Server:
    """The server to compare with.

    Attributes:
        endpoint: its address; None starts vLLM.
        name: the model's name at the endpoint; None takes the only model.
        key_env: environment variable with the API key.
        vllm: the `vllm` command, or the Python of vLLM's environment.
        seconds: deadline of a request, and of the start of vLLM.
    """

    endpoint: str | None
    name: str | None = None
    key_env: str | None = None
    vllm: str = "vllm"
    seconds: float = 600.0


def verify(target: str, server: Server, *, prompts: int, dtype: str, reporter: Reporter) -> Verification:
    """Compares a served model with local weights, on prompts that use its experts.

    Args:
        target: a run folder with an exported checkpoint, a checkpoint folder, a Hub id or `lab`.
        server: where the model is served.
        prompts: number of probes.
        dtype: type of the local computation, and of the server's; `auto` takes the checkpoint's own for the local one,
            and infers the server's.
        reporter: receives progress.

    Raises:
        SeawallError: the model cannot be loaded, or the endpoint is silent, refuses the probes, or returns no log
            probabilities.
    """
    settings = _endpoint(server)  # before minutes of work
    checkpoint = open_checkpoint(target_config(target, dtype))
    inferred = server.endpoint is not None and dtype == "auto"
    local = _compute(checkpoint, prompts, reporter, inferred=inferred)
    release_memory()  # vLLM may need the device
    length = max(len(reference.tokens) for reference in local.references) + 2
    with _serving(settings, server, checkpoint, dtype=local.dtype, length=length, reporter=reporter) as endpoint:
        reporter.stage(f"Comparing with {endpoint.model} at {endpoint.base_url}")
        served = _ask(endpoint, local.references)
        name = endpoint.model
    comparison = compare(
        local.references,
        served,
        precision=_precision(local.dtype, inferred=inferred),
        text_of=lambda token: str(local.tokenizer.decode([token])),
    )
    if comparison.precision == "16-bit":
        comparison = replace(comparison, repair=_repair_share(target, local, served))
    used = frozenset[Expert]().union(*(reference.experts for reference in local.references))
    return Verification(
        target,
        checkpoint.fingerprint,
        server.endpoint or "vllm",
        name,
        local.dtype,
        comparison,
        len(used) if local.experts else None,
        len(local.experts),
        tuple(expert for expert in local.experts if expert not in used),
    )


@dataclass(frozen=True, slots=True)
class _Local:
    """The local side: numbers of the probes, type of the computation, all experts of the model, and its tokenizer."""

    references: list[Reference]
    dtype: str
    experts: tuple[Expert, ...]
    tokenizer: PreTrainedTokenizerBase


def _compute(checkpoint: Checkpoint, prompts: int, reporter: Reporter, *, inferred: bool) -> _Local:
    """Computes the local side; `inferred`: whether the server's precision is not known, and may be 16 bits."""
    reporter.stage(f"Loading {checkpoint.id}")
    model, tokenizer = checkpoint.load()
    reporter.stage("Choosing probes, and computing them with the local weights")
    probes = choose_probes(model, tokenizer, prompts, new_tokens=NEW_TOKENS)
    numbers = references(
        model,
        tokenizer,
        probes,
        new_tokens=reply_length(model, probes, NEW_TOKENS),
        progress=lambda count, total: reporter.step("probes", count, total),
    )
    computed = str(model.dtype).removeprefix("torch.")
    if inferred and computed == "float32":
        numbers = with_rounding(model, numbers)
    moe = find_moe_if_any(model)
    experts = [] if moe is None else [(i, j) for i in range(moe.num_layers) for j in range(moe.num_experts)]
    return _Local(numbers, computed, tuple(experts), tokenizer)


def target_config(target: str, dtype: str) -> ModelConfig:
    """How to load the model of a run, of a folder, or by its name.

    Raises:
        RunFolderError: the run has no exported checkpoint.
        ConfigError: the name is wrong.
    """
    if not (Path(target) / "resolved.json").is_file():
        return checked_model(target, caller="verify", dtype=dtype)
    run = RunFolder.existing(Path(target))
    folder = run.stage("model")
    if not (folder / "config.json").is_file():
        raise RunFolderError(
            f"the run in {target} has no exported checkpoint",
            got="no model/config.json in it",
            remedy="run it with export.checkpoint=true, or apply its delta with `seawall apply` and name that folder",
        )
    settings = read_json(run.resolved)["model"]
    return checked_model(folder, caller="verify", **{**settings, "id": str(folder), "revision": None, "dtype": dtype})


def _repair_share(target: str, local: _Local, served: Sequence[Served]) -> float | None:
    """How much of a run's repair the server shows; None where the target is no run."""
    if not (Path(target) / "resolved.json").is_file():
        return None
    settings = read_json(RunFolder.existing(Path(target)).resolved)["model"]
    original = checked_model(settings["id"], caller="verify", **{**settings, "dtype": local.dtype})
    model, _ = open_checkpoint(original).load()
    numbers = [log_probabilities(model, reference.tokens) for reference in local.references]
    return repair_share(local.references, numbers, served)


def _ask(settings: EndpointSettings, local: Sequence[Reference]) -> list[Served]:
    with CompletionsClient(settings) as client:
        return client.probe(
            [(reference.prompt, reference.reply) for reference in local],
            max(len(reference.reply) for reference in local),
        )


def _endpoint(server: Server) -> EndpointSettings | None:
    """The endpoint's settings; None where vLLM is to be started, which must be there."""
    if server.endpoint is None:
        server_command(server.vllm)
        return None
    return _settings(server, server.endpoint, server.name)


@contextmanager
def _serving(
    settings: EndpointSettings | None,
    server: Server,
    checkpoint: Checkpoint,
    *,
    dtype: str,
    length: int,
    reporter: Reporter,
) -> Iterator[EndpointSettings]:
    """The endpoint to compare with; without one, a vLLM server runs inside."""
    if settings is not None:
        yield settings
        return
    reporter.stage(f"Starting {server.vllm}")
    folder = checkpoint.folder.resolve()
    with vllm_server(server.vllm, folder, dtype=dtype, length=length, seconds=server.seconds) as url:
        yield _settings(server, url, SERVED_NAME)


def _settings(server: Server, url: str, name: str | None) -> EndpointSettings:
    """The endpoint's settings; the name of the only model where none is given."""
    try:
        named = EndpointSettings(base_url=url, model=name or "-", key_env=server.key_env)
    except ValueError:
        raise ConfigError(
            "--endpoint or --key-env is wrong",
            expected="an http or https address such as http://127.0.0.1:8000/v1, and the name of a variable",
        ) from None
    served = served_name(named.base_url, server.key_env) if name is None else name
    return named.model_copy(update={"model": served, "attempts": _ATTEMPTS, "timeout": server.seconds})


def _precision(computed: str, *, inferred: bool) -> Precision | None:
    """The precision of the comparison; None where the server's is not known."""
    if computed != "float32":
        return "16-bit"
    return None if inferred else "float32"


def verification_table(result: Verification) -> Table:
    """The facts of a comparison."""
    return facts(verification_rows(result))
