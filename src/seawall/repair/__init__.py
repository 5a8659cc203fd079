"""Repairing the selected experts and the routers, in alternating rounds."""

from seawall.repair.rounds import ValidationScores
from seawall.repair.run import RepairInputs, RepairResult, repair

__all__ = ["RepairInputs", "RepairResult", "ValidationScores", "repair"]
