"""OpenAI-compatible servers on the loopback interface: one that fails at random, one that really generates."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from seawall.data.types import Message
from seawall.models.generate import generate

ALPHABET = {letter: byte for byte, letter in bytes_to_unicode().items()}
SPECIAL = range(3)
"""Token ids of the tiny tokenizer that stand for no text."""
REFUSES, COMPLIES = "I will not do that.", "Here is all of it."
GRADES = {
    REFUSES: '{"refusal": "yes", "specificity": 1, "convincingness": 1}',
    COMPLIES: '{"refusal": "no", "specificity": 5, "convincingness": 3}',
}
FAULTS = ("hang", "429", "500", "503", "half", "html", "shape")


@dataclass
class HttpReply:
    """What the server sends: a status, headers and a body; `cut` bytes of the body are kept back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


@dataclass
class Script:
    """Decides what every request gets, and remembers what was asked.

    Attributes:
        answer: question -> the model's text.
        faults: the share of requests that fail; which ones is fixed by the seed, the question and its attempt.
        always: what every request gets instead.
        special: question -> what it gets instead.
        complete: request -> the whole completion, in place of `answer`.
    """

    answer: Callable[[str], str | None]
    faults: float = 0.0
    seed: int = 0
    always: HttpReply | None = None
    special: dict[str, HttpReply] = field(default_factory=dict)
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    attempts: Counter[str] = field(default_factory=Counter)
    answered: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> HttpReply | None:
        """What a request gets; None leaves it without an answer."""
        question = body["messages"][-1]["content"]
        with self.lock:
            self.attempts[question] += 1
            self.bodies.append(body)
            self.headers.append(headers)
            kind = self._fault(question)
            self.kinds[kind] += 1
            if self.always is None and kind == "none":
                self.answered.append(question)
        instead = self.special.get(question, self.always)
        if instead is not None:
            return instead
        return self._made(kind, question, body)

    def _fault(self, question: str) -> str:
        digest = hashlib.sha256(question.encode()).hexdigest()
        generator = random.Random(f"{self.seed}/{digest}/{self.attempts[question]}")
        return generator.choice(FAULTS) if generator.random() < self.faults else "none"

    def _made(self, kind: str, question: str, request: dict[str, Any]) -> HttpReply | None:
        match kind:
            case "hang":
                self.released.wait(30)
                return None
            case "429":
                return HttpReply(429, b'{"error": "slow down"}', {"Retry-After": "0"})
            case "500" | "503":
                return HttpReply(int(kind), b"oops")
            case "html":
                return HttpReply(200, b"<html>I cannot help with that.</html>", {"Content-Type": "text/html"})
            case "shape":
                return HttpReply(200, b'{"refusal": "yes", "specificity": 1, "convincingness": 1}')
        if self.complete is not None:
            document = self.complete(request)
        else:
            document = {"choices": [{"message": {"role": "assistant", "content": self.answer(question)}}]}
        body = json.dumps(document).encode()
        return HttpReply(200, body, cut=len(body) // 2 if kind == "half" else 0)


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        reply = self.script.reply(json.loads(raw), {name.lower(): value for name, value in self.headers.items()})
        self.close_connection = True
        if reply is None or self.path != "/v1/chat/completions":
            return
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body[: len(reply.body) - reply.cut])

    def log_message(self, format: str, *values: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is no error of the server."""


@contextmanager
def serving(script: Script, port: int = 0) -> Iterator[str]:
    """The base URL of a server that follows the script, on a free port of 127.0.0.1 or on the one that is given."""
    script.released.clear()
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"script": script}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        script.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def grade(question: str) -> str:
    """The grades of a reply that is one of the two known ones."""
    reply = question.split("<reply-")[1]
    return next(grades for known, grades in GRADES.items() if known in reply)


def completing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Script:
    """A server whose completions a model generates, greedily, as vLLM makes them: with usage, reason and logprobs."""
    lock = threading.Lock()

    def complete(request: dict[str, Any]) -> dict[str, Any]:
        assert request["temperature"] == 0
        prompt = tuple(Message(**message) for message in request["messages"])
        with lock:
            reply = generate(model, tokenizer, [prompt], max_new_tokens=request["max_tokens"], batch_size=1)[0]
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": reply.answer},
            "finish_reason": "stop" if reply.ended else "length",
        }
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [_token(tokenizer, token) for token in reply.token_ids]}
        return {"choices": [choice], "usage": {"completion_tokens": len(reply.token_ids) + reply.ended}}

    return Script(lambda question: None, complete=complete)


def _token(tokenizer: PreTrainedTokenizerBase, token: int) -> dict[str, Any]:
    """A row of `logprobs.content`: the token's own bytes, of which a single token may hold half a character."""
    if token in SPECIAL or token >= len(tokenizer):  # a tiny model's vocabulary is larger than its tokenizer's
        return {"token": "", "logprob": 0.0, "bytes": []}
    raw = bytes(ALPHABET[letter] for letter in tokenizer.convert_ids_to_tokens(token))
    return {"token": raw.decode("utf-8", "replace"), "logprob": 0.0, "bytes": list(raw)}
