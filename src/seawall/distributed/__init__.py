"""Processes of a launch (`torchrun`, `accelerate launch`), which share the work of one command."""

from seawall.distributed.process import one_process

__all__ = ["one_process"]
