"""Frozen weights sharded over the processes of a launch: FSDP2 of PyTorch, as transformers sets it up at load.

Every forward pass, backward pass and read of a whole tensor gathers slices from all processes, so all must do it, in
one order: "in step". A pass out of step would wait for ever, and after an error inside a pass the next one would gather
other slices than it needs. Both are refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, __version__

from seawall.distributed.process import current_launch
from seawall.errors import ConfigError, Interrupted, SeawallError
from seawall.models.slices import Slices

_depth = [0]
_inside: WeakSet[nn.Module] = WeakSet()
"""The sharded models that are inside a pass, or whose last pass ended by an error."""


def sharding_options() -> dict[str, Any]:
    """Loading options of transformers that shard the weights over all processes of the launch.

    Raises:
        ConfigError: there is no launch, or this version of transformers does not shard at load.
    """
    count = current_launch().count
    if count == 1:
        raise ConfigError(
            "model.fsdp shards the weights over the processes of a launch",
            got="one process",
            expected="torchrun --nproc_per_node N -m seawall repair ..., or accelerate launch",
            remedy="start it so, or set model.fsdp=false",
        )
    settings = _settings_class()
    if settings is None:
        raise ConfigError(
            "model.fsdp needs a transformers that shards weights at load",
            got=f"transformers {__version__} without fsdp_size in its DistributedConfig",
            expected="transformers 5.23",
            remedy="pip install -U transformers, or set model.fsdp=false",
        )
    return {"distributed_config": settings(fsdp_size=count)}


def _settings_class() -> Any:
    """The class of transformers' settings for sharding; None where this version has none."""
    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        return None
    return DistributedConfig if "fsdp_size" in inspect.signature(DistributedConfig).parameters else None


def freeze_if_sharded(model: PreTrainedModel) -> None:
    """Takes gradients from a sharded model's own weights for good, and refuses passes out of step."""
    if not is_sharded(model):
        return
    model.requires_grad_(False)
    model.register_forward_pre_hook(_begin_pass, prepend=True)
    model.register_forward_hook(_end_pass)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(tensor: Tensor) -> Tensor:
    """A tensor with all its slices; gathered from all processes where it is sharded.

    Raises:
        SeawallError: it is sharded, and the processes are not in step.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    _require_step()
    full: Tensor = tensor.full_tensor()
    return full


def write_into(target: Tensor, slices: Slices) -> None:
    """Writes slices into a tensor, or all of it; into a sharded one all, of which each process keeps its own part.

    Args:
        target: of the model.
        slices: equal in all processes; of the full tensor where the target is sharded.
    """
    if isinstance(target, DTensor):
        assert slices.indices is None, "a sharded tensor is written as a whole"
        own = distribute_tensor(slices.tensor, target.device_mesh, target.placements, src_data_rank=None)
        target.detach().copy_(own)
    else:
        slices.write(target.detach())


@contextmanager
def in_step() -> Iterator[None]:
    """Inside, all processes of the launch make the same passes and reads, in the same order.

    Raises:
        Interrupted: another process has ended meanwhile.
    """
    _depth[0] += 1
    try:
        yield
    except RuntimeError as error:
        if _is_of_a_peer(error):
            raise Interrupted("another process of the launch has ended") from error
        raise
    finally:
        _depth[0] -= 1


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Whether a collective of torch failed; gloo's errors have no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _require_step() -> None:
    if _depth[0] == 0:
        raise SeawallError(
            "sharded weights (model.fsdp) are used by one process alone, while the others wait",
            expected="work that all processes do together: the training of `seawall repair`",
            remedy="set model.fsdp=false",
        )


def _begin_pass(model: nn.Module, args: Any) -> None:
    _require_step()
    if model in _inside:
        raise SeawallError(
            "an earlier pass over the sharded weights (model.fsdp) ended by an error",
            remedy="run the same command again; if it ends here once more, set model.fsdp=false",
        )
    _inside.add(model)


def _end_pass(model: nn.Module, args: Any, output: Any) -> None:
    """Frees the whole tensors of the output layer, which FSDP2 keeps until a backward pass or a `state_dict()`.

    Else one process could free them alone and then gather them alone, and what is written into them would be lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    _inside.discard(model)
