"""Records routing at the experts' call, which is the same in every family and version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from seawall.errors import UnsupportedModelError
from seawall.models.moe.calls import call_reader, logits_reader
from seawall.models.moe.find import MoELayer, MoEModel

RoutingSink = Callable[[int, Tensor, Tensor, Tensor | None], None]
"""Called as each layer runs, with (MoE layer, indices (T, K), weights (T, K), router logits (T, E) or None)."""


@final
@dataclass(eq=False)
class RoutingTrace:
    """The routing of one forward pass, one tensor per MoE layer. T counts all positions of the batch, padding too.

    Attributes:
        num_layers: L.
        num_experts: E.
        indices: chosen experts (T, K).
        weights: gate weights of the chosen experts (T, K), as passed to the experts.
        logits: router logits (T, E); empty unless requested.
    """

    num_layers: int
    num_experts: int
    indices: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Empties the trace."""
        self.indices.clear()
        self.weights.clear()
        self.logits.clear()

    def require_complete(self) -> None:
        """Checks that the trace holds a complete forward pass.

        Raises:
            UnsupportedModelError: a layer never called its experts, e.g. because a fused kernel replaced its block.
        """
        if len(self.indices) == self.num_layers:
            return
        raise UnsupportedModelError(
            "the recorded forward pass is incomplete",
            got=f"the routing of {len(self.indices)} of {self.num_layers} MoE layers",
            expected="one call of the experts in every MoE layer",
            remedy="run the model inside capture(), without kernels that replace whole MoE blocks (use_kernels=False)",
        )


@contextmanager
def capture(
    moe: MoEModel, *, logits: bool = False, detach: bool = True, sink: RoutingSink | None = None
) -> Iterator[RoutingTrace]:
    """Records routing while the model runs.

    The trace holds the latest forward pass. With a `sink` the trace stays empty: each layer's routing is passed on as
    it happens. Recorded is the routing that the experts receive; inside `replay` that is the replayed routing. A layer
    that gradient checkpointing runs again in the backward pass is recorded once.

    Args:
        moe: the model.
        logits: record the routers' logits too.
        detach: detach the recorded tensors from the graph; False lets a loss on logits or weights reach the routers.
        sink: receives the routing in place of the trace.
    """
    trace = RoutingTrace(moe.num_layers, moe.num_experts)
    recorder = _Recorder(trace, detach=detach, sink=sink)
    with ExitStack() as hooks:
        for layer in moe.layers:
            if logits:
                hooks.callback(layer.router.register_forward_hook(recorder.router_hook(layer)).remove)
            hook = layer.experts.register_forward_pre_hook(recorder.experts_hook(layer), with_kwargs=True)
            hooks.callback(hook.remove)
        yield trace


@final
class _Recorder:
    """Makes the hooks of one `capture`."""

    def __init__(self, trace: RoutingTrace, *, detach: bool, sink: RoutingSink | None) -> None:
        self._trace = trace
        self._detach = detach
        self._sink = sink
        self._logits: dict[int, Tensor] = {}

    def router_hook(self, layer: MoELayer) -> Callable[[nn.Module, Any, Any], None]:
        read = logits_reader(layer)

        def hook(router: nn.Module, inputs: Any, output: Any) -> None:
            if not _in_backward():
                self._logits[layer.index] = self._cut(read(output))

        return hook

    def experts_hook(self, layer: MoELayer) -> Callable[[nn.Module, Any, Any], None]:
        read = call_reader(layer.experts)

        def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _in_backward():
                call = read(args, kwargs)
                self._record(layer.index, self._cut(call.indices_TK), self._cut(call.weights_TK))

        return hook

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self._detach else tensor

    def _record(self, layer: int, indices_TK: Tensor, weights_TK: Tensor) -> None:
        logits_TE = self._logits.pop(layer, None)
        if self._sink is not None:
            self._sink(layer, indices_TK, weights_TK, logits_TE)
            return
        trace = self._trace
        if layer == 0:
            trace.clear()
        if layer != len(trace.indices):
            raise UnsupportedModelError(
                "the MoE layers do not run in order",
                got=f"layer {layer} after {len(trace.indices)} layers",
                expected="each layer once per forward pass, from the first to the last",
                remedy="turn off layer dropping, or stream the routing with a sink",
            )
        trace.indices.append(indices_TK)
        trace.weights.append(weights_TK)
        if logits_TE is not None:
            trace.logits.append(logits_TE)


def _in_backward() -> bool:
    """Whether autograd is running, that is, whether gradient checkpointing is computing a layer a second time.

    torch.utils.checkpoint uses the same test.
    """
    return bool(torch._C._current_graph_task_id() != -1)


def routing_counts(trace: RoutingTrace, mask_T: Tensor) -> tuple[Tensor, Tensor]:
    """How often each expert was chosen, and its total gate weight, over the tokens of a mask.

    Args:
        trace: a recorded forward pass.
        mask_T: true (or 1) for tokens to count; false for padding.

    Returns:
        (counts_LE, mass_LE), float64 on the trace's device. Each row of counts sums to K times the masked-in tokens.
    """
    counts_PLE, mass_PLE = routing_counts_by_row(trace, mask_T, torch.zeros_like(mask_T, dtype=torch.long), num_rows=1)
    return counts_PLE[0], mass_PLE[0]


def routing_counts_by_row(
    trace: RoutingTrace, mask_T: Tensor, row_ids_T: Tensor, *, num_rows: int
) -> tuple[Tensor, Tensor]:
    """`routing_counts` for each prompt of a batch.

    Computed by a matrix product, not by scattering, so that the sums do not depend on the order of threads.

    Args:
        trace: a recorded forward pass.
        mask_T: true (or 1) for tokens to count.
        row_ids_T: prompt of each token, 0 to P-1.
        num_rows: P.

    Returns:
        (counts_PLE, mass_PLE), float64 on the device of the first MoE layer.
    """
    trace.require_complete()
    belongs_PT = torch.nn.functional.one_hot(row_ids_T, num_rows).T * mask_T.to(row_ids_T.device, torch.float64)
    counts, mass = [], []
    for indices_TK, weights_TK in zip(trace.indices, trace.weights, strict=True):
        belongs_PT = belongs_PT.to(indices_TK.device)  # layers may lie on several devices
        dense_TE = torch.zeros(len(indices_TK), trace.num_experts, dtype=torch.float64, device=indices_TK.device)
        counts.append(belongs_PT @ dense_TE.scatter(1, indices_TK, 1.0))
        mass.append(belongs_PT @ dense_TE.scatter(1, indices_TK, weights_TK.detach().to(torch.float64)))
    return stacked(counts, dim=1), stacked(mass, dim=1)


def stacked(layers: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors of several layers, which may lie on several devices, as one on the device of the first."""
    return torch.stack([layer.to(layers[0].device) for layer in layers], dim=dim)
