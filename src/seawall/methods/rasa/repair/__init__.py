"""Repair of the selected experts and the routers, in alternating rounds. RASA sections 3.3 and 3.4.

run.py         the repair as an algorithm box
inputs.py      inputs and result
phases.py      expert step and router step of a round: parameters, loss, batches, optimizer
steps.py       the losses of both steps
original.py    routing, predictions and hidden states of the unrepaired model
batches.py     the examples of each update
trainables.py  trainable copies of experts and routers
rounds.py      progress, early stopping, and the choice of the round
checkpoint.py  checkpoints to resume from
drift.py       how far the routing moved
"""

from seawall.evaluation.decision import ValidationScores
from seawall.methods.rasa.repair.inputs import RepairInputs, RepairResult
from seawall.methods.rasa.repair.run import repair

__all__ = ["RepairInputs", "RepairResult", "ValidationScores", "repair"]
