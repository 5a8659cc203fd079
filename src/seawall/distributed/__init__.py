"""The Accelerate glue. seawall trains in one process, on whatever devices hold the model."""

from seawall.distributed.process import one_process

__all__ = ["one_process"]
