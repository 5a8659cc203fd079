"""Selection of the safety-critical experts from a profile, and its controls. RASA section 3.2.

run.py          the selection as an algorithm box
scores.py       scores of experts
sensitivity.py  gradients of the refusal loss with respect to gate weights
stability.py    bootstrap stability over goals
controls.py     control sets: at random, matched by use, matched by traffic
"""

from seawall.methods.rasa.selection.run import select

__all__ = ["select"]
