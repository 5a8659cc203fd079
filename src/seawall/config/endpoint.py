"""An OpenAI-compatible endpoint: its address and retry policy. Judges and engines share these keys."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, wrong
from seawall.errors import without_keys

_URL = re.compile(r"https?://(?:[^/?#@:\s\[\]]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?:/[^?#@\s]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointSettings(StrictModel):
    """A model behind an endpoint."""

    base_url: str = Field(description="Address of the endpoint with its version, such as `http://127.0.0.1:8000/v1`.")
    model: str = Field(min_length=1, description="Name of the model at the endpoint.")
    key_env: str | None = Field(
        default=None, description="Name of the environment variable with the API key; null sends no key."
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Maximum number of concurrent requests.")
    attempts: int = Field(
        default=6, ge=1, le=100, description="Attempts per request, after which the sample counts as unscored."
    )
    timeout: float = Field(default=60.0, gt=0, le=3600, description="Deadline of a whole request, in seconds.")
    backoff: float = Field(
        default=1.0, ge=0, le=3600, description="Seconds before the second attempt; doubled for each further attempt."
    )
    max_backoff: float = Field(
        default=60.0, ge=0, le=3600, description="Maximum seconds between attempts, even if the endpoint asks for more."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not _URL.fullmatch(url):
            expected = "an http or https address without user, password, query or fragment"
            raise wrong(expected, secret="@" in url or "?" in url)
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and (not _VARIABLE.fullmatch(name) or without_keys(name) != name):
            raise wrong("the name of an environment variable, not the key itself", secret=True)
        return name
