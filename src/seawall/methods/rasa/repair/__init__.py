"""Repairing the selected experts and the routers, in alternating rounds."""

from seawall.methods.rasa.repair.inputs import RepairInputs, RepairResult
from seawall.methods.rasa.repair.run import repair
from seawall.shell.validation import ValidationScores

__all__ = ["RepairInputs", "RepairResult", "ValidationScores", "repair"]
