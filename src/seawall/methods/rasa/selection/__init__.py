"""Selection of the safety-critical experts from a profile, and its controls. RASA section 3.2.

run.py        the selection as an algorithm box
scores.py     scores of experts
stability.py  bootstrap stability over goals
controls.py   random and frequency-matched control sets
"""

from seawall.methods.rasa.selection.run import select

__all__ = ["select"]
