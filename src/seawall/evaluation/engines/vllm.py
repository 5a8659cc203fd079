"""The decoder of the engine `vllm`: a server of our own on the weights, which ends with the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from seawall.config.endpoint import EndpointSettings
from seawall.config.engine import VllmEngine
from seawall.evaluation.served.client import CompletionsClient, Served
from seawall.evaluation.served.probes import require_same_replies
from seawall.evaluation.served.process import SERVED_NAME, server_command, vllm_server
from seawall.models.decoding import Batches, BatchSize, Decoding, Loaded, TokenIds
from seawall.models.files.fingerprint import WeightDigests
from seawall.models.files.save import write_model
from seawall.models.reference import Reference

_SHORTEST = 2048
"""Tokens of prompt and reply that a server takes at least, so that a later stage needs no other server."""
_ROUNDS = 4
"""Requests per batch, in multiples of the maximum number of concurrent requests."""
_ATTEMPTS = 3
_PREFIX = ".serving-"


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A checkpoint folder with the weights of a fingerprint."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Server:
    """A running server: its weights, its maximum tokens of a sequence, and the open client."""

    fingerprint: str
    length: int
    client: CompletionsClient


def vllm_program() -> str:
    """The program of the variable SEAWALL_VLLM, else `vllm`. A recipe names none: recipes come from others.

    Raises:
        ConfigError: there is no such program.
    """
    program = os.environ.get("SEAWALL_VLLM") or "vllm"
    server_command(program)
    return program


class VllmDecoder:
    """Serves the weights that a model has at a call: its checkpoint, or for changed weights a copy on disk."""

    def __init__(self, config: VllmEngine, scratch: Path, say: Callable[[str], None]) -> None:
        """Starts nothing.

        Args:
            config: of the engine.
            scratch: existing folder for copies of changed weights.
            say: receives a line for every start.

        Raises:
            ConfigError: there is no vLLM to start.
        """
        self._config, self._scratch, self._say = config, scratch, say
        self._program = vllm_program()
        self._digests: WeakKeyDictionary[PreTrainedModel, WeightDigests] = WeakKeyDictionary()
        self._stored: WeakKeyDictionary[PreTrainedModel, StoredWeights] = WeakKeyDictionary()
        self._open = ExitStack()
        self._server: _Server | None = None

    def register(self, model: PreTrainedModel, digests: WeightDigests, stored: StoredWeights | None) -> None:
        """Tells where the weights of a loaded model are on disk, so that no copy is written; None: nowhere."""
        self._digests[model] = digests
        if stored is not None:
            self._stored[model] = stored

    def prepare(self, loaded: Loaded) -> None:
        """Starts nothing before the first prompt."""

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """Replies in the order of the prompts.

        Raises:
            ConfigError: the server ends, stays silent, or computes another model.
        """
        if not prompts:
            return
        rooms = [decoding.room(prompt) for prompt in prompts]
        longest = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
        client = self._client(loaded, longest, decoding.context)
        size, ends = _ROUNDS * self._config.concurrency, sorted(decoding.eos_ids)
        for start in range(0, len(prompts), size):
            positions = list(range(start, min(start + size, len(prompts))))
            batch = [prompts[position] for position in positions]
            yield positions, client.replies(batch, [rooms[position] for position in positions], ends)

    def close(self) -> None:
        """Ends the server, and removes the copy of the weights."""
        self._server = None
        self._open.close()

    def _client(self, loaded: Loaded, longest: int, context: int | None) -> CompletionsClient:
        """The client of a server with the model's current weights, started where none runs."""
        model = loaded[0]
        if model not in self._digests:
            self._digests[model] = WeightDigests(model)
        fingerprint = self._digests[model].fingerprint()
        server = self._server
        if server is not None and server.fingerprint == fingerprint and server.length >= longest:
            return server.client
        self.close()
        length = max(longest, min(_SHORTEST, context or _SHORTEST))
        client = self._open.enter_context(CompletionsClient(self._start(loaded, fingerprint, length)))
        require_same_replies(loaded, "vllm", lambda local: _ask(client, local))
        self._server = _Server(fingerprint, length, client)
        return client

    def _start(self, loaded: Loaded, fingerprint: str, length: int) -> EndpointSettings:
        """Starts a server."""
        model = loaded[0]
        folder = self._folder(loaded, fingerprint)
        self._say(f"Starting {self._program} on {folder}")
        options = ["--enforce-eager"] if model.device.type == "cpu" else []
        if self._config.memory is not None:
            options += ["--gpu-memory-utilization", str(self._config.memory)]
        url = self._open.enter_context(
            vllm_server(
                self._program,
                folder,
                dtype=str(model.dtype).removeprefix("torch."),
                length=length,
                seconds=self._config.timeout,
                options=options,
            )
        )
        return EndpointSettings(
            base_url=url,
            model=SERVED_NAME,
            concurrency=self._config.concurrency,
            attempts=_ATTEMPTS,
            timeout=min(self._config.timeout, 3600.0),
        )

    def _folder(self, loaded: Loaded, fingerprint: str) -> Path:
        """The checkpoint with the model's weights; written where they are not on disk."""
        stored = self._stored.get(loaded[0])
        if stored is not None and stored.fingerprint == fingerprint:
            return stored.folder.resolve()
        own = f"{_PREFIX}{os.getpid()}-"
        for remnant in self._scratch.glob(f"{_PREFIX}*"):
            if not remnant.name.startswith(own):  # of a process that was killed, since a run has one at a time
                shutil.rmtree(remnant)
        folder = Path(mkdtemp(prefix=own, dir=self._scratch)).resolve()
        self._open.callback(shutil.rmtree, folder)
        write_model(*loaded, folder)
        return folder


def _ask(client: CompletionsClient, local: list[Reference]) -> list[Served]:
    longest = max(len(reference.reply) for reference in local)
    return client.probe([(reference.prompt, reference.reply) for reference in local], longest)
