"""Recipes: one pydantic model per section. Unknown keys are errors; every default is the recommended setting."""

from seawall.config.audit import AuditConfig
from seawall.config.base import StrictModel
from seawall.config.data import AttackName, DataConfig, SourceConfig
from seawall.config.eval import EvalConfig, JudgeConfig
from seawall.config.export import ExportConfig
from seawall.config.gate import GateConfig
from seawall.config.landscape import LandscapeConfig
from seawall.config.load import dump_resolved, load_recipe, recipe_text
from seawall.config.model import ModelConfig
from seawall.config.profile import ProfileConfig
from seawall.config.recipe import Recipe
from seawall.config.repair import EarlyStop, ExpertStep, RepairConfig, Retain, RouterStep
from seawall.config.select import SelectConfig
from seawall.config.steer import SteerConfig

__all__ = [
    "AttackName",
    "AuditConfig",
    "DataConfig",
    "EarlyStop",
    "EvalConfig",
    "ExpertStep",
    "ExportConfig",
    "GateConfig",
    "JudgeConfig",
    "LandscapeConfig",
    "ModelConfig",
    "ProfileConfig",
    "Recipe",
    "RepairConfig",
    "Retain",
    "RouterStep",
    "SelectConfig",
    "SourceConfig",
    "SteerConfig",
    "StrictModel",
    "dump_resolved",
    "load_recipe",
    "recipe_text",
]
