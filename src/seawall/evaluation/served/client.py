"""Requests by token ids to an OpenAI-compatible completions endpoint (vLLM, SGLang), with log probabilities."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from seawall.config.endpoint import EndpointSettings
from seawall.errors import ConfigError
from seawall.evaluation.endpoint import request_headers
from seawall.evaluation.exchange import ExchangeError, Response, post
from seawall.models.decoding import TokenIds
from seawall.visible import visible_line

_LONGEST_MESSAGE = 200
_BUSY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_NO_ADDRESS = (401, 403, 404, 405)
_PLAIN = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Greedy as our loop: a server reads penalties from the model's generation settings."""


@dataclass(frozen=True, slots=True)
class ServedReply:
    """The greedy reply of a server.

    Attributes:
        pieces: the text of every token.
        log_probabilities: of every token, in nats; NaN where the server returns no number.
        token_ids: the ids of the tokens; None where the server does not return them.
        text: the whole reply.
    """

    pieces: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    token_ids: TokenIds | None
    text: str


@dataclass(frozen=True, slots=True)
class Served:
    """What a server gives to one probe.

    Attributes:
        log_probabilities: of every token of prompt and local reply but the first; None without `echo`.
        reply: the greedy reply to the prompt.
    """

    log_probabilities: tuple[float, ...] | None
    reply: ServedReply


class CompletionsClient:
    """A client of one completions endpoint. Use it in `with`."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Checks the key; sends nothing.

        Raises:
            ConfigError: the environment variable of the key is not set.
        """
        self._settings = settings
        self._client = httpx2.Client(
            headers=request_headers(settings, "--key-env"),
            timeout=settings.timeout,
            trust_env=not settings.base_url.startswith("http://127.0.0.1:"),  # no proxy reaches this machine's servers
        )
        self._url = httpx2.URL(f"{settings.base_url}/completions")

    def __enter__(self) -> CompletionsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def probe(self, probes: list[tuple[TokenIds, TokenIds]], new_tokens: int) -> list[Served]:
        """What the server gives to probes, each a prompt and the local reply to it; requests run concurrently.

        Raises:
            ConfigError: the endpoint is silent, refuses a request, or returns no log probabilities.
        """

        def served(probe: tuple[TokenIds, TokenIds]) -> Served:
            return self._probe(*probe, new_tokens=new_tokens)

        first = served(probes[0])  # alone, so that a wrong address is met once
        executor = ThreadPoolExecutor(self._settings.concurrency)
        try:
            return [first, *executor.map(served, probes[1:])]
        finally:  # also where a request fails, or the user interrupts
            executor.shutdown(cancel_futures=True)

    def replies(self, prompts: Sequence[TokenIds], lengths: Sequence[int], ends: Sequence[int]) -> list[TokenIds]:
        """Greedy replies as token ids, each with its end token if the model wrote one; requests run concurrently.

        Args:
            prompts: token ids.
            lengths: maximum number of new tokens of each.
            ends: the tokens that end a reply.

        Raises:
            ConfigError: the endpoint is silent, refuses a request, or returns no token ids.
        """

        def reply(prompt: TokenIds, length: int) -> TokenIds:
            body = {"prompt": list(prompt), "max_tokens": length, "return_token_ids": True, **_PLAIN}
            response = self._checked(self._post({**body, "stop_token_ids": list(ends)}))
            return _token_ids(response, self._settings.base_url)

        executor = ThreadPoolExecutor(self._settings.concurrency)
        try:
            return list(executor.map(reply, prompts, lengths))
        finally:  # also where a request fails, or the user interrupts
            executor.shutdown(cancel_futures=True)

    def _probe(self, prompt: TokenIds, reply: TokenIds, *, new_tokens: int) -> Served:
        return Served(self._given(prompt + reply), self._reply(prompt, new_tokens))

    def _given(self, tokens: TokenIds) -> tuple[float, ...] | None:
        """Log probabilities of all tokens but the first; None where the server does not know `echo`."""
        response = self._post({"prompt": list(tokens), "max_tokens": 1, "echo": True, "logprobs": 1})
        if response.status in (400, 422) and b"echo" in response.body:
            return None
        values = _choice(self._checked(response), self._settings.base_url)[1].get("token_logprobs")
        if not isinstance(values, list) or len(values) < len(tokens):
            return None
        return tuple(map(_number, values[1 : len(tokens)]))

    def _reply(self, prompt: TokenIds, new_tokens: int) -> ServedReply:
        body = {"prompt": list(prompt), "max_tokens": new_tokens, "logprobs": 1, "return_token_ids": True}
        choice, row = _choice(self._checked(self._post(body)), self._settings.base_url)
        pieces, values, ids = row.get("tokens"), row.get("token_logprobs"), choice.get("token_ids")
        if not isinstance(pieces, list) or not isinstance(values, list) or len(pieces) != len(values):
            raise _no_log_probabilities(self._settings.base_url)
        return ServedReply(
            tuple(map(str, pieces)),
            tuple(map(_number, values)),
            tuple(map(int, ids)) if isinstance(ids, list) and len(ids) == len(pieces) else None,
            str(choice.get("text") or ""),
        )

    def _post(self, body: dict[str, Any]) -> Response:
        """The response to a request, repeated while the server is busy or does not answer."""
        settings, problem = self._settings, ""
        document = {"model": settings.model, "temperature": 0, **body}
        for attempt in range(settings.attempts):
            time.sleep(settings.backoff * attempt)
            try:
                response = post(self._client, self._url, document, seconds=settings.timeout)
            except ExchangeError as error:
                problem = str(error)
                continue
            if response.status not in _BUSY:
                return response
            problem = f"status {response.status}: {_message(response)}"
        raise ConfigError(
            f"the endpoint {settings.base_url} does not answer",
            got=problem,
            remedy="start the server, and check the address, which ends with /v1",
        )

    def _checked(self, response: Response) -> Response:
        """The response if it is a success.

        Raises:
            ConfigError: any other status.
        """
        if response.status == 200:
            return response
        remedies = dict.fromkeys(_NO_ADDRESS, "check --endpoint (it ends with /v1), --model and --key-env")
        remedies[400] = "the served model may have a smaller vocabulary or a shorter context than the local one"
        raise ConfigError(
            f"the endpoint {self._settings.base_url} refuses the probes",
            got=f"status {response.status}: {_message(response)}",
            expected="the completions of an OpenAI-compatible server, for prompts of token ids",
            remedy=remedies.get(response.status),
        )


def served_name(base_url: str, key_env: str | None = None, *, seconds: float = 30.0) -> str:
    """The name of the only model at an endpoint.

    Raises:
        ConfigError: the endpoint is silent, or serves no model or several.
    """
    settings = EndpointSettings(base_url=base_url, model="-", key_env=key_env)
    try:
        with httpx2.Client(headers=request_headers(settings, "--key-env"), timeout=seconds) as client:
            response = client.get(f"{settings.base_url}/models")
            names = [row["id"] for row in response.json()["data"]]
    except httpx2.RequestError as error:
        raise ConfigError(
            f"the endpoint {settings.base_url} does not answer",
            got=type(error).__name__,
            remedy="start the server, and check the address, which ends with /v1",
        ) from None
    except (ValueError, LookupError, TypeError):
        names = []
    if len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(
            f"the endpoint {settings.base_url} does not name a single model",
            got=visible_line(", ".join(map(str, names))[:_LONGEST_MESSAGE]) or "no list of models",
            remedy="add --model NAME, the model's name at the endpoint",
        )
    return names[0]


def _choice(response: Response, base_url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice of a completion, and its log probabilities."""
    try:
        choice = json.loads(response.body)["choices"][0]
        row = choice["logprobs"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _no_log_probabilities(base_url) from None
    if not isinstance(choice, dict) or not isinstance(row, dict):
        raise _no_log_probabilities(base_url)
    return choice, row


def _token_ids(response: Response, base_url: str) -> TokenIds:
    """The token ids of the first choice of a completion."""
    try:
        ids = json.loads(response.body)["choices"][0]["token_ids"]
        tokens = tuple(map(int, ids))
    except (ValueError, LookupError, TypeError, RecursionError):
        tokens = ()
    if not tokens:
        raise ConfigError(
            f"the endpoint {base_url} returns no token ids",
            expected="`token_ids` in a choice, as vLLM 0.10.2 and later return them",
        )
    return tokens


def _no_log_probabilities(base_url: str) -> ConfigError:
    return ConfigError(
        f"the endpoint {base_url} returns no log probabilities",
        expected="`logprobs` with `tokens` and `token_logprobs`, as vLLM and SGLang return them",
        remedy="serve the model with vLLM or SGLang, without a proxy that drops log probabilities",
    )


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan


def _message(response: Response) -> str:
    text = response.body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")
    return visible_line(" ".join(text.split())[:_LONGEST_MESSAGE])
