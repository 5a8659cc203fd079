"""Repairing the selected experts and the routers, in alternating rounds."""

from seawall.repair.inputs import RepairInputs, RepairResult
from seawall.repair.rounds import ValidationScores
from seawall.repair.run import repair

__all__ = ["RepairInputs", "RepairResult", "ValidationScores", "repair"]
