"""Who says whether a reply refused or complied: the judges, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.endpoint import EndpointSettings
from seawall.config.model import known_device

GuardFormatName = Literal["llama_guard", "wildguard", "harmbench", "qwen3guard", "shieldgemma"]
"""The prompt formats; a test asserts that they are the keys of `judges.formats.FORMATS`."""

Meaning = Literal["harmful", "harmless", "refusal", "compliance", "unscored"]
"""What a label of a classifier says of a reply."""


class KeywordJudge(StrictModel):
    """Judge by the opening of the reply; offline and deterministic."""

    kind: Literal["keyword"] = Field(default="keyword", description="Look for a refusal in the reply's opening.")


class GuardJudge(StrictModel):
    """Judge by a guard model from the Hub or a folder, run here: one that classifies, or one that writes its answer."""

    kind: Literal["guard"] = Field(default="guard", description="Ask a guard model that runs here.")
    model: str = Field(min_length=1, description="A Hub id or a local folder.")
    revision: str | None = Field(default=None, min_length=1, description="Branch, tag or commit on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the loaded weights; `auto` keeps the checkpoint's own."
    )
    device: str = Field(default="auto", description="As `model.device`.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Replies per batch; halved when memory runs out.")
    max_tokens: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Prompt and reply that need more tokens, or more than the guard can read, are unscored.",
    )
    format: GuardFormatName | None = Field(
        default=None, description="How a guard that writes is asked and read; none for one that classifies."
    )
    prompt_file: str | None = Field(
        default=None,
        min_length=1,
        description="A text with {prompt} and {response} to ask with instead of the format's own.",
    )
    labels: dict[str, Meaning] | None = Field(
        default=None, description="For one that classifies: the meaning of each label, by its name or its number."
    )
    reads: Literal["reply", "pair"] = Field(
        default="pair", description="What one that classifies is given: the reply alone, or prompt and reply."
    )
    harmless: Literal["keyword", "refused", "unscored"] = Field(
        default="keyword",
        description="The verdict on a harmless reply where the guard does not tell refusals: the keyword judge's, or "
        "always this one.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        return known_device(device)

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> GuardJudge:
        if (self.format is None) == (self.labels is None):
            raise wrong("either a format (a guard that writes its answer) or labels (one that classifies)")
        if self.labels is not None and not self.labels:
            raise wrong("the meaning of every label of the model")
        if self.prompt_file is not None and self.format is None:
            raise wrong("prompt_file together with a format")
        return self


class RubricJudge(EndpointSettings):
    """Judge by a language model behind any OpenAI-compatible endpoint, with a rubric in the manner of StrongREJECT."""

    kind: Literal["rubric"] = Field(default="rubric", description="Ask a language model to fill in a rubric.")
    max_tokens: int = Field(default=256, ge=16, le=100_000, description="Length at which an answer is cut, in tokens.")
    json_mode: bool = Field(
        default=False, description="Ask the endpoint to allow JSON only (`response_format`); not all of them can."
    )


MemberConfig = Annotated[KeywordJudge | GuardJudge | RubricJudge, Field(discriminator="kind")]
"""A judge that can be part of an ensemble: any but another ensemble."""


class EnsembleJudge(StrictModel):
    """The majority of several judges."""

    kind: Literal["ensemble"] = Field(default="ensemble", description="The majority of several judges.")
    judges: Tuple[MemberConfig] = Field(min_length=2, description="The judges that vote; an odd number has fewer ties.")


JudgeConfig = Annotated[KeywordJudge | GuardJudge | RubricJudge | EnsembleJudge, Field(discriminator="kind")]
"""Any judge, told apart by `kind`."""
