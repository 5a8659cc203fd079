"""A completions server as vLLM is, with a tiny model: greedy replies and log probabilities by plain forward passes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

END = 2
"""The end token of tiny models."""


@dataclass
class Completions:
    """What is served, and how much of it.

    Attributes:
        model: computes everything.
        tokenizer: gives the texts of tokens.
        echoes: whether log probabilities of prompts are returned; otherwise `echo` is refused.
        names_tokens: whether the ids of a reply's tokens are returned.
        measures: whether log probabilities are returned at all.
        last_of_ties: whether the last of equally likely tokens is taken, not the first.
        vocabulary: larger token ids are refused.
        models: names of the list of models.
        text: the text of every token in place of the tokenizer's.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    echoes: bool = True
    names_tokens: bool = True
    measures: bool = True
    last_of_ties: bool = False
    vocabulary: int = 10**9
    models: tuple[str, ...] = ("tiny",)
    text: str | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request."""
        prompt = body["prompt"]
        if max(prompt) >= self.vocabulary:
            return 400, {"error": {"message": f"Token id {max(prompt)} is out of vocabulary"}}
        if body.get("echo") and not self.echoes:
            return 400, {"error": {"message": "echo is not supported"}}
        assert body["temperature"] == 0
        assert body.get("logprobs", 1) == 1
        with self.lock:
            reply, values = self._greedy(prompt, body["max_tokens"])
            given = self._given(prompt) if body.get("echo") else []
        ids = [*(prompt if body.get("echo") else ()), *reply]
        texts = [self.tokenizer.decode([token]) if self.text is None else self.text for token in ids]
        choice: dict[str, Any] = {"text": "".join(texts), "finish_reason": "stop" if END in reply else "length"}
        if self.measures:
            choice["logprobs"] = {"tokens": texts, "token_logprobs": [*given, *values]}
        if self.names_tokens and body.get("return_token_ids"):
            choice["token_ids"] = reply
        return 200, {"choices": [choice]}

    def _greedy(self, prompt: list[int], length: int) -> tuple[list[int], list[float]]:
        tokens, values = list(prompt), []
        for _ in range(length):
            log_V = self._logits(tokens)[-1].float().log_softmax(-1)
            ties = (log_V == log_V.max()).nonzero()[:, 0].tolist()
            tokens.append(ties[-1 if self.last_of_ties else 0])
            values.append(float(log_V.max()))
            if tokens[-1] == END:
                break
        return tokens[len(prompt) :], values

    def _given(self, prompt: list[int]) -> list[float | None]:
        log_TV = self._logits(prompt).float().log_softmax(-1)
        return [None, *(float(log_TV[place, token]) for place, token in enumerate(prompt[1:]))]

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits


class _Handler(BaseHTTPRequestHandler):
    completions: Completions

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(*(self.completions.complete(body) if self.path == "/v1/completions" else (404, {})))

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.completions.models]})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        pass


def completions_server(completions: Completions, port: int = 0) -> ThreadingHTTPServer:
    """A server that is not started yet."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"completions": completions}))


@contextmanager
def serving_completions(completions: Completions) -> Iterator[str]:
    """The base URL of a running server."""
    server = completions_server(completions)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
