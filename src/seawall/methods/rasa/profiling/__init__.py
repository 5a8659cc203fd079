"""Which experts do successful jailbreaks use? Pairs, completions and routing counts."""

from seawall.methods.rasa.profiling.run import ProfileResult, profile

__all__ = ["ProfileResult", "profile"]
