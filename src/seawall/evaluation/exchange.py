"""One HTTP request with a deadline for all of it and a limit of its size, whatever the server sends.

A client's timeouts hold for each read, so a server that sends a byte now and then keeps a request open for ever.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx2

LARGEST_BODY = 8 * 2**20
"""Bytes of a response. A reply of 4,096 tokens with log probabilities has about 2 MB."""
_AS_IT_IS = {"Accept-Encoding": "identity"}
"""A compressed body could grow a thousandfold in memory."""


class ExchangeError(Exception):
    """The request has no complete response; the message names the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response: status, headers, and the body as it was sent."""

    status: int
    headers: httpx2.Headers
    body: bytes


def post(client: httpx2.Client, url: httpx2.URL, body: dict[str, Any], *, seconds: float) -> Response:
    """The response to one request.

    Args:
        client: the HTTP client; thread-safe.
        url: the address.
        body: sent as JSON.
        seconds: deadline for the whole exchange, from connecting to the last byte.

    Raises:
        ExchangeError: the connection fails, the deadline passes, or the response is too large.
    """
    exchange = _Exchange(client, url, body, seconds)
    exchange.start()
    exchange.join(seconds)
    if exchange.is_alive():
        raise ExchangeError(f"no complete response within {seconds:g} seconds")
    if exchange.response is None:
        raise ExchangeError(exchange.problem)
    return exchange.response


class _Exchange(threading.Thread):
    """The exchange in a thread that the caller can leave behind: nothing else ends a read of dripping headers.

    A thread that is left behind ends with its next read, once the client is closed; the interpreter does not wait for
    daemon threads.
    """

    def __init__(self, client: httpx2.Client, url: httpx2.URL, body: dict[str, Any], seconds: float) -> None:
        super().__init__(daemon=True)
        self._client, self._url, self._body = client, url, body
        self._deadline = time.monotonic() + seconds
        self.response: Response | None = None
        self.problem = "the connection ended"

    def run(self) -> None:
        try:
            with self._client.stream("POST", self._url, json=self._body, headers=_AS_IT_IS) as response:
                self.response = Response(response.status_code, response.headers, self._read(response))
        except ExchangeError as error:
            self.problem = str(error)
        except httpx2.RequestError as error:
            self.problem = type(error).__name__
        except (httpx2.StreamError, RuntimeError, OSError):  # the client was closed
            self.problem = "the client was closed"

    def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise ExchangeError(f"a response of more than {LARGEST_BODY >> 20} MiB")
            if time.monotonic() > self._deadline:
                raise ExchangeError("the deadline passed")
        return bytes(body)
