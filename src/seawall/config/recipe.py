"""The recipe: all settings of a run, as `seawall run recipe.yaml` reads them."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from seawall.config.audit import AuditConfig
from seawall.config.base import StrictModel, wrong
from seawall.config.data import DataConfig
from seawall.config.engine import EngineConfig, TransformersEngine
from seawall.config.eval import EvalConfig
from seawall.config.export import ExportConfig
from seawall.config.gate import GateConfig
from seawall.config.gene import GeneConfig
from seawall.config.landscape import LandscapeConfig
from seawall.config.model import ModelConfig
from seawall.config.profile import ProfileConfig
from seawall.config.repair import RepairConfig
from seawall.config.select import SelectConfig
from seawall.config.steer import SteerConfig
from seawall.config.tune import TuneConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SEEDED: dict[str, type[StrictModel]] = {
    "select": SelectConfig,
    "repair": RepairConfig,
    "eval": EvalConfig,
    "audit": AuditConfig,
    "steer": SteerConfig,
    "landscape": LandscapeConfig,
    "gene": GeneConfig,
}


class Recipe(StrictModel):
    """One run: model, prompts and every stage. The defaults are the recommended settings.

    `seed` is the seed of every stage without its own, and `engine` that of the evaluations too.
    """

    name: str = Field(default="seawall", description="Name of the run; defaults to the name of the recipe file.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of every stage without its own.")
    model: ModelConfig = Field(default=ModelConfig(), description="The model.")
    data: DataConfig = Field(default=DataConfig(), description="The prompts.")
    engine: EngineConfig = Field(
        default=TransformersEngine(), description="The engine that generates the model's replies."
    )
    profile: ProfileConfig = Field(default=ProfileConfig(), description="Counting the experts that attacks use.")
    select: SelectConfig = Field(default=SelectConfig(), description="Selecting the safety-critical experts.")
    repair: RepairConfig = Field(default=RepairConfig(), description="Training the selected experts and the routers.")
    eval: EvalConfig = Field(default=EvalConfig(), description="Evaluating the model before and after the repair.")
    audit: AuditConfig = Field(default=AuditConfig(), description="Auditing whether the repair is real.")
    steer: SteerConfig = Field(default=SteerConfig(), description="Measuring how far refusal can be steered.")
    landscape: LandscapeConfig = Field(
        default=LandscapeConfig(), description="Measuring the harmful rate while the weights move."
    )
    tune: TuneConfig = Field(default=TuneConfig(), description="Fine-tuning on a task, and its effect on refusals.")
    gene: GeneConfig = Field(
        default=GeneConfig(), description="Safety as an adapter for fine-tuned models of a family."
    )
    gate: GateConfig = Field(
        default=GateConfig(), description="Bounds that the report and `seawall gate` hold the repaired model to."
    )
    export: ExportConfig = Field(default=ExportConfig(), description="Writing the repaired model.")
    output: str | None = Field(
        default=None,
        min_length=1,
        description="The run folder, relative to the current directory; null takes `runs/NAME`.",
    )

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise wrong("a name of at most 100 letters, digits, dots, dashes and underscores (it names a folder)")
        return name

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("seed"), int):
            return data
        stages = {stage: _seeded(data.get(stage), model, data["seed"]) for stage, model in _SEEDED.items()}
        return {**data, **stages}

    @model_validator(mode="after")
    def _spread_engine(self) -> Recipe:
        if "engine" not in self.eval.model_fields_set:
            # The instance is frozen for its users, and not finished yet.
            object.__setattr__(self, "eval", self.eval.model_copy(update={"engine": self.engine}))
        return self


def _seeded(section: Any, model: type[StrictModel], seed: Any) -> Any:
    """The section with the recipe's seed, unless it has its own seed or is no valid section."""
    if isinstance(section, model):
        return section if "seed" in section.model_fields_set else section.model_copy(update={"seed": seed})
    if section is None or isinstance(section, dict):
        return {"seed": seed, **(section or {})}
    return section
