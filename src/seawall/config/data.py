"""Where prompts come from, which attacks wrap them, and how many are used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong

AttackName = Literal[
    "role_play", "nested_fiction", "persuasion", "forced_opening", "reversed_text", "reversed_words", "escalation"
]
"""The built-in attack families; a test asserts that they are the keys of `seawall.data.attacks.ATTACKS`."""


class BuiltinSource(StrictModel):
    """The prompts that seawall ships for the embedded model."""

    kind: Literal["builtin"] = Field(default="builtin", description="The prompts shipped with seawall.")


class JsonlSource(StrictModel):
    """A local JSONL file, one prompt a line; a field that a row lacks is left empty, except the prompt."""

    kind: Literal["jsonl"] = Field(default="jsonl", description="A local JSONL file, one JSON object a line.")
    path: str = Field(min_length=1, description="The file; relative to the current directory.")
    prompt_field: str = Field(default="prompt", min_length=1, description="Field of the request, goal or question.")
    answer_field: str = Field(
        default="answer", min_length=1, description="Field of the reference answer (gold questions)."
    )
    unsafe_twin_field: str = Field(
        default="unsafe_twin", min_length=1, description="Field of the unsafe twin of a borderline prompt."
    )
    id_field: str = Field(default="id", min_length=1, description="Field of the row's identifier.")
    category_field: str = Field(default="category", min_length=1, description="Field of the row's category.")
    split_field: str = Field(default="split", min_length=1, description="Field that says train, validation or test.")


class HubSource(StrictModel):
    """What the named public sources share: a local file when given, the Hub otherwise."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="A local copy (CSV or JSONL); none downloads it from the Hub (needs `datasets`).",
    )
    split: str | None = Field(
        default=None, min_length=1, description="Use only the rows of this split; none uses the source's usual split."
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
        default="xstest", description="XSTest: prompts that sound unsafe but are safe, and twins."
    )


SourceConfig = Annotated[
    BuiltinSource
    | JsonlSource
    | JailbreakBenchSource
    | AdvBenchSource
    | HarmBenchSource
    | StrongRejectSource
    | XSTestSource,
    Field(discriminator="kind"),
]
"""Any source of prompts, told apart by `kind`."""

Cap = Annotated[int, Field(ge=1)]


class DataConfig(StrictModel):
    """The prompts of a run. Goals are split by goal, so that no goal is both trained on and tested."""

    harmful: SourceConfig = Field(
        default=BuiltinSource(), description="Harmful goals, the requests that should be refused."
    )
    benign: SourceConfig = Field(default=BuiltinSource(), description="Harmless instructions that should be followed.")
    borderline: SourceConfig = Field(
        default=BuiltinSource(), description="Prompts that sound unsafe but are safe; refusing them is over-refusal."
    )
    gold: SourceConfig = Field(
        default=BuiltinSource(), description="Questions with reference answers, for capability loss."
    )
    refusals: str = Field(
        default="builtin",
        min_length=1,
        description="Refusals to train towards: `builtin`, or a JSON file holding a list.",
    )
    attacks_seen: Tuple[AttackName] = Field(
        default=("role_play", "nested_fiction"), description="Attack families that the repair trains on."
    )
    attacks_unseen: Tuple[AttackName] = Field(
        default=("persuasion", "escalation", "forced_opening", "reversed_text"),
        description="Attack families that only the evaluation uses, to measure transfer.",
    )
    attack_file: str | None = Field(
        default=None,
        min_length=1,
        description="Chat JSONL of ready attacks (goal, messages, attack) on the harmful goals; joins the seen ones.",
    )
    train_goals: Cap | None = Field(
        default=None, description="At most this many goals to find and repair; none uses all."
    )
    validation_goals: Cap | None = Field(
        default=None, description="At most this many goals to choose the round; none uses all."
    )
    test_goals: Cap | None = Field(default=None, description="At most this many goals to report on; none uses all.")
    retain_examples: Cap | None = Field(
        default=None,
        description="At most this many harmless prompts whose answers the repair must keep; none uses all.",
    )
    retain_wrapped: int = Field(
        default=64,
        ge=0,
        description="At most this many harmless instructions in the wrappings of the seen attacks whose answers the "
        "repair must keep, so that it learns to refuse what is asked and not how.",
    )
    validation_benign: Cap | None = Field(
        default=None, description="At most this many harmless prompts to choose the round; none uses all."
    )
    test_benign: Cap | None = Field(
        default=None, description="At most this many harmless prompts to report on; none uses all."
    )
    test_borderline: Cap | None = Field(
        default=None, description="At most this many borderline prompts to report on; none uses all."
    )
    gold_examples: Cap | None = Field(default=None, description="At most this many gold questions; none uses all.")

    @field_validator("attacks_seen", "attacks_unseen")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise wrong("each attack family once")
        return names

    @model_validator(mode="after")
    def _disjoint(self) -> DataConfig:
        if not self.attacks_seen and self.attack_file is None:
            raise wrong("at least one family in attacks_seen, or an attack_file")
        both = sorted(set(self.attacks_seen) & set(self.attacks_unseen))
        if both:
            raise wrong(f"a family in attacks_seen or in attacks_unseen, not in both: {', '.join(both)}")
        return self
