"""Choosing the safety-critical experts from a profile, and the controls that a choice must beat."""

from seawall.methods.rasa.selection.run import select

__all__ = ["select"]
