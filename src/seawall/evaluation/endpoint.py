"""Requests to an OpenAI-compatible endpoint, with retries."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2

from seawall.config.endpoint import EndpointSettings
from seawall.data.answers import NEVER_ANSWERED, ReplyParts, split_reply
from seawall.errors import ConfigError
from seawall.evaluation.exchange import ExchangeError, post

Section = Literal["eval.judge", "eval.engine"]
"""The recipe section of the endpoint, for messages."""

_ORDINARY = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Names of environment variables that are no key by mistake."""
_BROKEN_OFF = ("abort", "error")
"""Ends of generation by a fault of the server, whose text is a part of a reply."""
_THOUGHTS = ("thinking", "reasoning")
"""Types of parts of a content that hold the model's reasoning."""
_MOST_TOKENS = 10**9
_RETRY_STATUSES = frozenset((408, 409, 425, 429))
_WRONG_SETTING = {
    401: "check the key in the variable that {section}.key_env names",
    403: "check the key in the variable that {section}.key_env names, and its permissions",
    404: "check {section}.base_url and {section}.model",
    405: "check {section}.base_url",
}
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_REDIRECTED = "set {section}.base_url to the address that it redirects to"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request.

    Attributes:
        text: the model's answer, after its thought; None where the model gave none.
        problem: why there is no answer.
        final: whether a retry is useless: there is an answer, or the endpoint rejects the request itself.
        finish: the reason for the end of generation (`stop`, `length`); None where the endpoint does not return it.
        tokens: number of generated tokens; None where the endpoint does not return it.
        pieces: the bytes of every token; None where they were not requested or not returned.
        thought: the model's reasoning, returned apart or marked in the text.
        unscored: why no judge may score the answer; empty where there is one.
    """

    text: str | None
    problem: str | None = None
    final: bool = True
    finish: str | None = None
    tokens: int | None = None
    pieces: tuple[bytes, ...] | None = None
    thought: str = ""
    unscored: str = ""


class Endpoint:
    """A client of one endpoint. Thread-safe."""

    def __init__(self, config: EndpointSettings, section: Section) -> None:
        """Checks the settings; sends nothing.

        Raises:
            ConfigError: the environment variable of the key is not set, or the address is invalid.
        """
        self.concurrency = config.concurrency
        self._config = config
        self._section = section
        self._jitter = random.Random()
        self._headers = request_headers(config, f"{section}.key_env")
        self._url = _url(config, section)

    def connect(self) -> httpx2.Client:
        """An HTTP client for the requests; to be closed by `with`."""
        return httpx2.Client(headers=self._headers, timeout=self._config.timeout)

    def body(self, messages: Sequence[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """The body of a request: greedy decoding, at most `max_tokens` tokens."""
        return {
            "model": self._config.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
        }

    def request(self, client: httpx2.Client, body: dict[str, Any], stop: threading.Event) -> Answer:
        """The answer to one request, with retries until `stop` is set.

        Raises:
            ConfigError: the endpoint rejects the key, the address or the model.
        """
        answer = Answer(None, "not asked", final=False)
        for attempt in range(self._config.attempts):
            answer, wait = self._attempt(client, body)
            last = attempt + 1 == self._config.attempts
            if answer.final or last or stop.wait(self._pause(attempt, wait)):
                break
        return answer

    def _attempt(self, client: httpx2.Client, body: dict[str, Any]) -> tuple[Answer, float]:
        """The outcome of one attempt, and the seconds to wait that the endpoint asks for."""
        try:
            response = post(client, self._url, body, seconds=self._config.timeout)
        except ExchangeError as error:
            return Answer(None, str(error), final=False), 0.0
        status = response.status
        if status in _RETRY_STATUSES or status >= 500:
            return Answer(None, f"status {status}", final=False), retry_after(response.headers.get("Retry-After"))
        if status in _WRONG_SETTING or status in _REDIRECTS:
            raise ConfigError(
                f"the endpoint {self._config.base_url} of {self._section} rejects requests",
                got=f"status {status}",
                remedy=_WRONG_SETTING.get(status, _REDIRECTED).format(section=self._section),
            )
        if status != 200:
            return Answer(None, f"the endpoint refuses the request with status {status}"), 0.0
        try:
            return _answer(response.body), 0.0
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Answer(None, "a broken body", final=False), 0.0

    def _pause(self, attempt: int, retry_after_seconds: float) -> float:
        """Seconds to wait: doubled with each attempt, with jitter, so that retries do not all come at once."""
        doubled = self._config.backoff * 2.0 ** min(attempt, 30)
        return min(self._config.max_backoff, max(retry_after_seconds, doubled * self._jitter.uniform(0.5, 1.0)))


def retry_after(header: str | None) -> float:
    """Seconds of a `Retry-After` header, given as a number or a date; 0 where it is missing or unreadable."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


def _answer(body: bytes) -> Answer:
    """Parses a chat completion; raises for any other structure."""
    document = json.loads(body)
    choice = document["choices"][0]
    if choice.get("finish_reason") in _BROKEN_OFF:
        return Answer(None, f"the endpoint broke the reply off ({choice['finish_reason']})", final=False)
    content = _content(choice["message"])
    parts = _parts(choice["message"], None if content is None else _well_formed(content))
    finish, usage = choice.get("finish_reason"), document.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= _MOST_TOKENS
    return Answer(
        None if content is None and not parts.thought else parts.answer,
        thought=parts.thought,
        unscored=parts.unscored,
        finish=finish if isinstance(finish, str) else None,
        tokens=tokens if is_count else None,
        pieces=_pieces(choice.get("logprobs")),
    )


def _content(message: dict[str, Any]) -> str | None:
    """The text that the user reads: a text, the texts of parts, or the refusal that some servers give beside them."""
    content = message["content"]
    if isinstance(content, list):
        texts = [part for part in content if part["type"] not in _THOUGHTS]
        content = "".join(part[part["type"].removeprefix("output_")] for part in texts)
    if not isinstance(content, str | None):
        raise TypeError(type(content).__name__)
    refusal = message.get("refusal")
    return refusal if not content and isinstance(refusal, str) and refusal else content


def _parts(message: dict[str, Any], content: str | None) -> ReplyParts:
    """The parts of a reply: the reasoning that the server returns apart, else by the marks in the text."""
    fields = (message.get("reasoning_content"), message.get("reasoning"), _thought_in(message["content"]))
    thought = next((_well_formed(value) for value in fields if isinstance(value, str) and value), "")
    parts = split_reply(content or "")
    if not thought:
        return parts
    # Some servers give the thought twice: apart, and with its marks in the text.
    return ReplyParts(parts.answer, thought, "" if parts.answer.strip() else NEVER_ANSWERED)


def _thought_in(content: Any) -> str:
    """The reasoning among the parts of a content, as text or as parts of its own."""
    parts = [part for part in content if part["type"] in _THOUGHTS] if isinstance(content, list) else []
    values = [part.get(part["type"]) for part in parts]
    pieces = [piece for value in values for piece in (value if isinstance(value, list) else [{"text": value}])]
    return "".join(piece["text"] for piece in pieces if isinstance(piece.get("text"), str))


def _pieces(logprobs: Any) -> tuple[bytes, ...] | None:
    """The bytes of every token, or of its text where the server leaves out the bytes."""
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(rows, list):
        return None
    return tuple(map(_piece, rows))


def _piece(row: Any) -> bytes:
    if row.get("bytes") is None:
        return bytes(row["token"].encode())
    if not isinstance(row["bytes"], list):
        raise TypeError("a number would be taken for a length")
    return bytes(row["bytes"])


def _well_formed(text: str) -> str:
    """The text with lone surrogates, which JSON can hold and UTF-8 cannot, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _url(config: EndpointSettings, section: Section) -> httpx2.URL:
    try:
        return httpx2.URL(f"{config.base_url}/chat/completions")
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{section}.base_url {config.base_url} is no valid address", got=error) from None


def request_headers(config: EndpointSettings, setting: str) -> dict[str, str]:
    """The headers of requests: the API key, if the settings name one.

    Args:
        config: the endpoint.
        setting: the user's name for its `key_env`, for messages.

    Raises:
        ConfigError: the environment variable holds no key.
    """
    if config.key_env is None:
        return {}
    key = os.environ.get(config.key_env, "").strip()
    name = config.key_env if _ORDINARY.fullmatch(config.key_env) else "(not shown: it could be the key itself)"
    if not key.isascii() or not key.isprintable() or not key:
        raise ConfigError(
            f"the environment variable {name} of {setting} holds no key",
            expected="an API key of printable ASCII characters",
            remedy=f"set the variable: export {name}=...",
        )
    return {"Authorization": f"Bearer {key}"}
