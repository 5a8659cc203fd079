"""An OpenAI-compatible endpoint: where it is, and how patiently it is asked. Judges and engines share these keys."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, wrong

_URL = re.compile(r"https?://(?:[^/?#@:\s\[\]]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?:/[^?#@\s]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointSettings(StrictModel):
    """What it takes to ask a model behind an endpoint."""

    base_url: str = Field(description="The endpoint up to and with its version, such as `http://127.0.0.1:8000/v1`.")
    model: str = Field(min_length=1, description="The model's name at that endpoint.")
    key_env: str | None = Field(
        default=None, description="Name of the environment variable that holds the key; none sends no key."
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Requests under way at once.")
    attempts: int = Field(default=6, ge=1, le=100, description="Requests per reply before it is left unscored.")
    timeout: float = Field(default=60.0, gt=0, le=3600, description="Seconds to wait for an answer.")
    backoff: float = Field(
        default=1.0, ge=0, le=3600, description="Seconds before the second request; doubled for each one after it."
    )
    max_backoff: float = Field(
        default=60.0, ge=0, le=3600, description="Seconds between requests, at most, whatever the endpoint asks for."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not _URL.fullmatch(url):
            raise wrong("an http or https address without user, password, query or fragment")
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE.fullmatch(name):
            raise wrong("the name of an environment variable, never the key itself")
        return name
