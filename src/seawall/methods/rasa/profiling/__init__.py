"""Which experts do successful jailbreaks use? RASA sections 3.1 and 3.2.

run.py       the expert profile as an algorithm box
pairs.py     which pairs are kept
counting.py  routing counts of prompts and replies
"""

from seawall.methods.rasa.profiling.run import ProfileResult, profile

__all__ = ["ProfileResult", "profile"]
