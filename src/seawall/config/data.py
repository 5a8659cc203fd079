"""The prompts of a run: their sources, the attacks that wrap them, and their numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.plugin import PLUGIN_FORMS, PluginName, PluginOptions

AttackName = Literal[
    "role_play",
    "nested_fiction",
    "persuasion",
    "forced_opening",
    "reversed_text",
    "reversed_words",
    "escalation",
    "code_completion",
    "other_language",
]
"""The built-in attack families; a test asserts that they are the keys of `seawall.data.attacks.ATTACKS`."""
LiveAttackName = Literal["live_escalation"]
"""Families whose conversation the model itself continues: the keys of `seawall.data.attacks.LIVE_ATTACKS`."""


def _family(name: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One message for the three forms of a name, in place of one per form."""
    try:
        return validate(name)
    except ValidationError:
        families = ", ".join(map(repr, (*get_args(AttackName), *get_args(LiveAttackName))))
        raise wrong(f"{families}, or {PLUGIN_FORMS}") from None


FamilyName = Annotated[AttackName | LiveAttackName | PluginName, WrapValidator(_family)]
"""A family of attacks: a built-in one, or a plugin."""


class BuiltinSource(StrictModel):
    """The prompts shipped with seawall for the embedded model."""

    kind: Literal["builtin"] = Field(default="builtin", description="The prompts shipped with seawall.")


class RowFields(StrictModel):
    """The names of a row's fields; all but the prompt are optional."""

    prompt_field: str = Field(default="prompt", min_length=1, description="Field with the request, goal or question.")
    answer_field: str = Field(
        default="answer", min_length=1, description="Field with the reference answer (gold questions)."
    )
    unsafe_twin_field: str = Field(
        default="unsafe_twin", min_length=1, description="Field with the unsafe twin of a borderline prompt."
    )
    id_field: str = Field(default="id", min_length=1, description="Field with the row's identifier.")
    category_field: str = Field(default="category", min_length=1, description="Field with the row's category.")
    split_field: str = Field(
        default="split", min_length=1, description="Field with the row's split: train, validation or test."
    )


class JsonlSource(RowFields):
    """A local JSONL file with one prompt per line."""

    kind: Literal["jsonl"] = Field(default="jsonl", description="A local JSONL file with one JSON object per line.")
    path: str = Field(min_length=1, description="The file; relative to the current directory.")


class FileSource(RowFields):
    """A local file of prompts, also in the formats of TRL."""

    kind: Literal["file"] = Field(default="file", description="A local file: JSONL, JSON, CSV or Parquet.")
    path: str = Field(min_length=1, description="The file; relative to the current directory.")


class DatasetSource(RowFields):
    """A dataset of the Hub, also in the formats of TRL."""

    kind: Literal["dataset"] = Field(default="dataset", description="A dataset of the Hub (needs `datasets`).")
    id: str = Field(min_length=1, description="The dataset: OWNER/NAME.")
    subset: str | None = Field(default=None, min_length=1, description="Its configuration; null for the only one.")
    hub_split: str = Field(default="train", min_length=1, description="Its split; rows may name their own in addition.")
    revision: str | None = Field(default=None, min_length=1, description="Branch, tag or commit on the Hub.")


class PluginSource(StrictModel):
    """Prompts from the code of another package; the function gets the purpose and the options."""

    kind: Literal["plugin"] = Field(default="plugin", description="A function of another package.")
    name: PluginName = Field(
        description="The function: `package/name` of an entry point of seawall.prompt_sources, or `module:function`."
    )
    options: PluginOptions = Field(default={}, description="Keyword arguments of the function.")


class HubSource(StrictModel):
    """The common keys of the named public sources, read from a local copy or from the Hub."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="A local copy (CSV or JSONL); null downloads it from the Hub (needs `datasets`).",
    )
    split: str | None = Field(
        default=None, min_length=1, description="Split to use; null takes the source's usual split."
    )


class JailbreakBenchSource(HubSource):
    """JailbreakBench behaviours (arXiv 2404.01318)."""

    kind: Literal["jailbreakbench"] = Field(default="jailbreakbench", description="JailbreakBench behaviours.")


class AdvBenchSource(HubSource):
    """AdvBench harmful behaviours (arXiv 2307.15043)."""

    kind: Literal["advbench"] = Field(default="advbench", description="AdvBench harmful behaviours.")


class HarmBenchSource(HubSource):
    """HarmBench text behaviours (arXiv 2402.04249)."""

    kind: Literal["harmbench"] = Field(default="harmbench", description="HarmBench standard text behaviours.")


class StrongRejectSource(HubSource):
    """StrongREJECT forbidden prompts (arXiv 2402.10260)."""

    kind: Literal["strongreject"] = Field(default="strongreject", description="StrongREJECT forbidden prompts.")


class XSTestSource(HubSource):
    """XSTest safe and unsafe prompts (arXiv 2308.01263)."""

    kind: Literal["xstest"] = Field(
        default="xstest", description="XSTest: prompts that sound unsafe but are safe, and their unsafe twins."
    )


SourceConfig = Annotated[
    BuiltinSource
    | JsonlSource
    | FileSource
    | DatasetSource
    | PluginSource
    | JailbreakBenchSource
    | AdvBenchSource
    | HarmBenchSource
    | StrongRejectSource
    | XSTestSource,
    Field(discriminator="kind"),
]
"""A source of prompts; `kind` selects the variant."""

Cap = Annotated[int, Field(ge=1)]


def limited_note(limit: int | None) -> str:
    """The sentence that stands beside every number of a limited sample; empty without a limit."""
    if limit is None:
        return ""
    return (
        f"Limited sample: at most {limit} prompts of every group (data.limit). These are not the numbers of the whole "
        "test set."
    )


class DataConfig(StrictModel):
    """The prompts of a run, split by goal, so that no goal is both trained on and tested."""

    harmful: SourceConfig = Field(default=BuiltinSource(), description="Harmful goals, which should be refused.")
    benign: SourceConfig = Field(
        default=BuiltinSource(), description="Harmless instructions, which should be followed."
    )
    borderline: SourceConfig = Field(
        default=BuiltinSource(), description="Prompts that sound unsafe but are safe; refusing them is over-refusal."
    )
    gold: SourceConfig = Field(
        default=BuiltinSource(), description="Questions with reference answers, whose loss measures capability."
    )
    refusals: str = Field(
        default="builtin",
        min_length=1,
        description="Refusals to train towards: `builtin`, or a JSON file with a list of texts.",
    )
    attacks_seen: Tuple[FamilyName] = Field(
        default=("role_play", "nested_fiction"),
        description="Attack families that the repair trains on; plugins by name too.",
    )
    attacks_unseen: Tuple[FamilyName] = Field(
        default=("persuasion", "escalation", "forced_opening", "reversed_text"),
        description="Attack families used in the evaluation alone, to measure transfer.",
    )
    attack_file: str | None = Field(
        default=None,
        min_length=1,
        description="Chat JSONL with prepared attacks (goal, messages, attack) on the harmful goals, added to the seen "
        "families.",
    )
    attacks_unseen_file: str | None = Field(
        default=None,
        min_length=1,
        description="Chat JSONL like attack_file, whose attacks are used in the evaluation alone, as unseen families.",
    )
    train_goals: Cap | None = Field(
        default=None, description="Maximum number of goals to profile and repair; null takes all."
    )
    validation_goals: Cap | None = Field(
        default=None, description="Maximum number of goals that choose the round of the repair; null takes all."
    )
    test_goals: Cap | None = Field(default=None, description="Maximum number of goals to report on; null takes all.")
    retain_examples: Cap | None = Field(
        default=None,
        description="Maximum number of harmless prompts whose answers the repair must preserve; null takes all.",
    )
    retain_wrapped: int = Field(
        default=64,
        ge=0,
        description="Maximum number of harmless instructions, wrapped like the seen attacks, whose answers the repair "
        "must preserve, so that it learns to refuse harmful content and not the wrapping.",
    )
    validation_benign: Cap | None = Field(
        default=None,
        description="Maximum number of harmless prompts that choose the round of the repair; null takes all.",
    )
    test_benign: Cap | None = Field(
        default=None, description="Maximum number of harmless prompts to report on; null takes all."
    )
    test_borderline: Cap | None = Field(
        default=None, description="Maximum number of borderline prompts to report on; null takes all."
    )
    test_wrapped: Cap | None = Field(
        default=None,
        description="Maximum number of benign, and of borderline, requests to report on inside the wrappings of the "
        "seen attacks; null wraps all test prompts.",
    )
    limit: Cap | None = Field(
        default=None,
        description="Maximum number of prompts of every group, in every split, for a first look (`--limit`): the "
        "numbers are then those of a limited sample, and reports say so; null takes all.",
    )
    gold_examples: Cap | None = Field(default=None, description="Maximum number of gold questions; null takes all.")

    def capped(self, cap: int | None) -> int | None:
        """A maximum number of prompts under the limit of every group."""
        return min((number for number in (cap, self.limit) if number is not None), default=None)

    @field_validator("attacks_seen", "attacks_unseen")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise wrong("attack families without repeats")
        return names

    @field_validator("attacks_seen")
    @classmethod
    def _fixed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        live = [name for name in names if name in get_args(LiveAttackName)]
        if live:
            raise wrong(f"{live[0]} in attacks_unseen: profile and repair need prompts that do not depend on the model")
        return names

    @model_validator(mode="after")
    def _disjoint(self) -> DataConfig:
        if not self.attacks_seen and self.attack_file is None:
            raise wrong("at least one family in attacks_seen, or an attack_file")
        both = sorted(set(self.attacks_seen) & set(self.attacks_unseen))
        if both:
            raise wrong(f"each family in attacks_seen or attacks_unseen, not in both: {', '.join(both)}")
        return self
