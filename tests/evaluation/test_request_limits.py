"""Servers that drip, flood and lie: a request ends at its deadline and its size limit, with an answer or a reason."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from seawall.config.judge import RubricJudge
from seawall.evaluation import exchange
from seawall.evaluation.endpoint import Answer, Endpoint, retry_after

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SECONDS = 0.4
Behaviour = Callable[[socket.socket, threading.Event], None]


def drip(start: bytes, byte: bytes = b" ") -> Behaviour:
    """Sends the start at once, then a byte every 20 ms, for ever."""

    def send(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(start)
        while not over.wait(0.02):
            connection.sendall(byte)

    return send


def flood(start: bytes, chunk: bytes) -> Behaviour:
    """Sends the chunk again and again, as fast as the client reads."""

    def send(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(start)
        while not over.is_set():
            connection.sendall(chunk)

    return send


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait(60)


@contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """The base URL of a server that reads each request's start and then behaves as given, until the block ends."""
    over, threads = threading.Event(), []
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                behave(connection, over)
            except OSError:
                """The client has gone."""

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(connection,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(10)


def asked(behave: Behaviour, attempts: int = 1, seconds: float = SECONDS) -> tuple[Answer, float]:
    """The answer to one request of a server, and the seconds that it took."""
    with serving(behave) as url:
        config = RubricJudge(
            kind="rubric", base_url=url, model="m", attempts=attempts, timeout=seconds, backoff=0.0, max_backoff=0.0
        )
        endpoint = Endpoint(config, "eval.judge")
        begun = time.monotonic()
        with endpoint.connect() as client:
            answer = endpoint.request(client, endpoint.body([{"role": "user", "content": "x"}], 8), threading.Event())
        return answer, time.monotonic() - begun


@pytest.mark.parametrize(
    "behave",
    [
        silent,
        drip(b""),
        drip(HEAD + b"X-Slow: ", b"a"),
        drip(HEAD + b"\r\n"),
        drip(HEAD + b"Content-Length: 1000000\r\n\r\n"),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silent", "status", "headers", "body", "length", "chunked", "continue"],
)
def test_a_request_that_never_ends_ends_at_its_deadline(behave: Behaviour) -> None:
    answer, seconds = asked(behave, attempts=2)
    assert answer.text is None
    assert not answer.final
    assert seconds < 20 * SECONDS


@pytest.mark.parametrize(
    "start",
    [HEAD + b"\r\n", HEAD + b"Content-Length: 209715200\r\n\r\n", HEAD + b"Content-Encoding: gzip\r\n\r\n"],
    ids=["endless", "200 MB", "compressed"],
)
def test_a_body_is_read_to_its_limit_alone(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LARGEST_BODY", 2**20)
    answer, _ = asked(flood(start, b"a" * 65536), seconds=30.0)
    assert answer.problem == "a response of more than 1 MiB"
    assert not answer.final


def once(document: Any) -> Behaviour:
    """Sends a JSON body and closes."""

    def send(connection: socket.socket, over: threading.Event) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return send


def completion(content: Any, **rest: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}, **rest}]}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"choices": 1},
        {"choices": [[]]},
        completion(1),
        completion([{"type": "image_url", "image_url": {"url": "x"}}]),
        completion([{"type": "audio", "data": "x"}]),
        completion("a", logprobs={"content": [[1]]}),
        completion("a", logprobs={"content": [{"token": "a", "bytes": 10**12}]}),
        completion("a", logprobs={"content": [{"token": "a", "bytes": [300]}]}),
        completion("a", logprobs={"content": [{"token": "\ud800"}]}),
        b"[" * 100_000,
        b"9" * 100_000,
        b"\xff\xfe",
        b"",
    ],
    ids=lambda document: repr(document)[:40],
)
def test_a_wrong_body_is_broken(document: Any) -> None:
    answer, _ = asked(once(document))
    assert (answer.text, answer.problem, answer.final) == (None, "a broken body", False)


def test_odd_values_of_a_right_body_are_left_out() -> None:
    for tokens in (True, -1, 10**30, 1.5, "many", [1]):
        answer, _ = asked(once(completion("a\ud800b", finish_reason=7) | {"usage": {"completion_tokens": tokens}}))
        assert (answer.text, answer.finish, answer.tokens, answer.final) == ("a\ufffdb", None, None, True)


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_a_reply_that_the_server_broke_off_is_asked_for_again(finish: str) -> None:
    answer, _ = asked(once(completion("Sure, here is the first", finish_reason=finish)))
    assert (answer.text, answer.final) == (None, False)
    assert answer.problem == f"the endpoint broke the reply off ({finish})"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("soon", 0.0), ("Mon, 01 Jan 2024 00:00:00 +99999999", 0.0), ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0)],
)
def test_a_header_of_seconds_or_dates(header: str, seconds: float) -> None:
    assert retry_after(header) == seconds
