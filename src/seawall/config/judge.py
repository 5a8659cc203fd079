"""The judges, which label replies refused, complied or unscored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.endpoint import EndpointSettings
from seawall.config.model import known_device
from seawall.config.plugin import PluginName, PluginOptions

GuardFormatName = Literal["llama_guard", "wildguard", "harmbench", "qwen3guard", "shieldgemma"]
"""The prompt formats; a test asserts that they are the keys of `judges.formats.FORMATS`."""

Meaning = Literal["harmful", "harmless", "refusal", "compliance", "unscored"]
"""The meaning of a classifier's label for a reply."""


GuardPresetName = Literal["qwen3guard-0.6b", "distilroberta-rejection", "modernbert-refusal"]
GUARD_PRESETS: Mapping[GuardPresetName, Mapping[str, Any]] = {
    "qwen3guard-0.6b": {
        "model": "Qwen/Qwen3Guard-Gen-0.6B",
        "revision": "fada3b2f655b89601929198343c94cd2f64d93cc",
        "format": "qwen3guard",
    },
    "distilroberta-rejection": {
        "model": "ProtectAI/distilroberta-base-rejection-v1",
        "revision": "86520b5f35829cf9209a449e1716b56c70ddd802",
        "labels": {"0": "compliance", "1": "refusal"},
        "reads": "reply",
    },
    "modernbert-refusal": {
        "model": "Crusadersk/quantsafe-refusal-modernbert",
        "revision": "b34061f964619a5b6e0ff24be45a428124fa36bc",
        "labels": {"0": "compliance", "1": "refusal"},
        "reads": "pair",
    },
}
"""Settings of small guards and refusal classifiers that run on a CPU, by name, at pinned revisions.

All three are Apache-2.0. The two classifiers tell refusals alone; the guard tells harm and refusal.
"""


class KeywordJudge(StrictModel):
    """Judges by rules on what the reply says; offline and deterministic."""

    kind: Literal["keyword"] = Field(default="keyword", description="Rules on what the reply declines and gives.")


class GuardJudge(StrictModel):
    """Judges by a guard model that runs in this process: a classifier, or a model that generates its answer."""

    kind: Literal["guard"] = Field(default="guard", description="A guard model that runs in this process.")
    preset: GuardPresetName | None = Field(
        default=None,
        description="A small guard or refusal classifier by name: sets model, revision, format or labels, and reads; "
        "settings beside it override it.",
    )
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
        description="Maximum tokens of prompt and reply, within the guard's own limit; longer pairs are unscored.",
    )
    format: GuardFormatName | None = Field(
        default=None, description="Prompt and answer format of a generative guard; null for a classifier."
    )
    prompt_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with the guard's prompt, holding {prompt} and {response}, in place of the format's own.",
    )
    labels: dict[str, Meaning] | None = Field(
        default=None, description="For a classifier: the meaning of each label, by its name or number."
    )
    reads: Literal["reply", "pair"] = Field(
        default="pair", description="For a classifier: its input, the reply alone or prompt and reply."
    )
    harmless: Literal["keyword", "refused", "unscored"] = Field(
        default="keyword",
        description="Verdict on a harmless reply where the guard does not detect refusals: the keyword judge's, or "
        "always refused or unscored.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        return known_device(device)

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, settings: Any) -> Any:
        """Fills in the settings of a preset. Another model than the preset's has no pinned revision."""
        if not isinstance(settings, Mapping) or settings.get("preset") not in GUARD_PRESETS:
            return settings
        preset = dict(GUARD_PRESETS[settings["preset"]])
        if settings.get("model", preset["model"]) != preset["model"]:
            preset.pop("revision")
        return {**preset, **settings}

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> GuardJudge:
        if (self.format is None) == (self.labels is None):
            raise wrong("either a format (for a generative guard) or labels (for a classifier)")
        if self.labels is not None and not self.labels:
            raise wrong("the meaning of every label of the model")
        if self.prompt_file is not None and self.format is None:
            raise wrong("prompt_file together with a format")
        return self


class RubricJudge(EndpointSettings):
    """Judges by a language model behind an OpenAI-compatible endpoint, with a rubric after StrongREJECT."""

    kind: Literal["rubric"] = Field(default="rubric", description="A language model that fills in a rubric.")
    max_tokens: int = Field(
        default=256, ge=16, le=100_000, description="Maximum length of the judge's answer, in tokens."
    )
    json_mode: bool = Field(
        default=False,
        description="Request JSON output from the endpoint (`response_format`); not every endpoint supports it.",
    )


class PluginJudge(StrictModel):
    """Judges by the code of another package."""

    kind: Literal["plugin"] = Field(default="plugin", description="A function of another package.")
    name: PluginName = Field(
        description="The function: `package/name` of an entry point of seawall.judges, or `module:function`."
    )
    options: PluginOptions = Field(default={}, description="Keyword arguments of the function.")


MemberConfig = Annotated[KeywordJudge | GuardJudge | RubricJudge | PluginJudge, Field(discriminator="kind")]
"""A member of an ensemble: any judge but an ensemble."""


class EnsembleJudge(StrictModel):
    """The majority of several judges."""

    kind: Literal["ensemble"] = Field(default="ensemble", description="The majority of several judges.")
    judges: Tuple[MemberConfig] = Field(min_length=2, description="The voting judges; an odd number has fewer ties.")


JudgeConfig = Annotated[
    KeywordJudge | GuardJudge | RubricJudge | PluginJudge | EnsembleJudge, Field(discriminator="kind")
]
"""A judge; `kind` selects the variant."""
