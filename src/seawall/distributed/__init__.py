"""Processes under Accelerate. A repair trains in one process, on all devices that hold the model."""

from seawall.distributed.process import one_process

__all__ = ["one_process"]
