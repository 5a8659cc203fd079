"""The conditions of the patch-target audit: which parameters or routing of the repair each puts into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from seawall.methods.audit.context import REPAIRED_TENSORS
from seawall.models.moe.exchange import exchanged, routed_as
from seawall.models.moe.find import MoEModel
from seawall.models.moe.parameter_groups import ParameterGroup, parameter_groups
from seawall.models.slices import Slices

ORIGINAL, REPAIRED = "original", "repaired"
ROUTING, BLOCKS = "routing", "moe_blocks"
ORIGINAL_ROUTING, REPAIRED_ROUTING = "original_routing", "repaired_routing"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the repair.

    Attributes:
        name: one of `PARTS`.
        alone: the condition of the original model with this part of the repair.
        without: the condition of the repaired model without this part.
    """

    name: str
    alone: str
    without: str


@dataclass(frozen=True)
class PatchPlan:
    """The conditions of the audit.

    Attributes:
        changed: groups of parameters that the repair changed.
        patches: condition -> the groups with repaired values; two conditions never have the same groups.
        parts: what each pair of conditions says something of.
    """

    changed: tuple[ParameterGroup, ...]
    patches: Mapping[str, frozenset[ParameterGroup]]
    parts: tuple[Part, ...]

    @property
    def conditions(self) -> tuple[str, ...]:
        """All conditions, in the order of the page."""
        return (*self.patches, REPAIRED_ROUTING, ORIGINAL_ROUTING)


def patch_plan(changed: Sequence[ParameterGroup]) -> PatchPlan:
    """The conditions for a repair of these groups; a single group has no condition of its own.

    Routed and shared experts are also patched together, as the output of the MoE blocks, where the repair changed both
    and more.
    """
    everything = frozenset(changed)
    targets: dict[str, frozenset[ParameterGroup]] = {group: frozenset({group}) for group in changed}
    blocks = frozenset[ParameterGroup]({"experts", "shared_experts"})
    if blocks < everything:
        targets[BLOCKS] = blocks
    names = {frozenset[ParameterGroup](): ORIGINAL, everything: REPAIRED}
    for part, groups in targets.items():
        names.setdefault(groups, f"only_{part}")
    for part, groups in targets.items():
        names.setdefault(everything - groups, f"without_{part}")
    parts = [Part(part, names[groups], names[everything - groups]) for part, groups in targets.items()]
    return PatchPlan(
        changed=tuple(changed),
        patches={name: groups for groups, name in names.items()},
        parts=(*(parts if len(changed) > 1 else ()), Part(ROUTING, REPAIRED_ROUTING, ORIGINAL_ROUTING)),
    )


@contextmanager
def set_up(
    name: str, moe: MoEModel, repaired: Mapping[str, Slices], groups: frozenset[ParameterGroup]
) -> Iterator[None]:
    """Inside, the original model is in a condition.

    The two conditions of the routing replay, at every step of decoding, the experts and gate weights that the source
    model chooses for the very same text; routers put back would not do, because changed experts change their inputs.

    Args:
        name: the condition.
        moe: the original model.
        repaired: slices of the parameters that the repair changed, with their repaired values.
        groups: the groups with repaired values; without effect on the conditions of the routing.
    """
    members = parameter_groups(moe, repaired)
    patched = {key: repaired[key] for group in groups for key in members.get(group, ())}
    with ExitStack() as changes:
        if name == REPAIRED_ROUTING:
            changes.enter_context(routed_as(moe, repaired))
        elif name == ORIGINAL_ROUTING:
            original = changes.enter_context(exchanged(moe.model, repaired))
            changes.enter_context(routed_as(moe, original))
        else:
            changes.enter_context(exchanged(moe.model, patched))
        yield


def in_condition(name: str, groups: frozenset[ParameterGroup], moe: MoEModel) -> AbstractContextManager[None]:
    """`set_up` with the repaired parameters that this process holds."""
    return set_up(name, moe, REPAIRED_TENSORS.value, groups)
