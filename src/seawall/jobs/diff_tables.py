"""Differences of runs and checkpoints as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import GOLD, NONE_SCORED, group_name
from seawall.jobs.diff import GroupDifference, RunDifference
from seawall.jobs.plan import facts
from seawall.models.files.difference import CheckpointDifference

_SHOWN = 20
"""Names of a kind that a table shows; `--json` has all of them."""


def difference_tables(found: RunDifference | CheckpointDifference) -> Iterator[Table]:
    """What `seawall diff` prints."""
    if isinstance(found, RunDifference):
        yield _run_facts(found)
        yield _rates(found)
        return
    yield _checkpoint_facts(found)
    if any(layer.experts or layer.router is not None for layer in found.layers):
        yield _layers(found)


def _run_facts(found: RunDifference) -> Table:
    experts, (a, b) = found.experts, found.repairs
    counts = [sum(map(len, layers)) for layers in (experts.shared, experts.only_a, experts.only_b)]
    rows = [
        ("base weights", "the same" if a.base_model == b.base_model else "different"),
        ("repaired weights", "the same" if a.result_model == b.result_model else "different"),
        ("experts in both", f"{counts[0]}, Jaccard {experts.jaccard:.2f}"),
        ("experts in A only", f"{counts[1]}{_by_layer(experts.only_a)}"),
        ("experts in B only", f"{counts[2]}{_by_layer(experts.only_b)}"),
    ]
    for name, side in (("A", a), ("B", b)):
        rows += [
            (f"delta of {name}", f"{side.tensors} tensors, {side.slices} expert slices"),
            (f"routing drift of {name}", ", ".join(f"{value:.3f}" for value in side.drift)),
        ]
    return facts(rows)


def _by_layer(layers: Sequence[Sequence[int]]) -> str:
    named = [f"{index}: {' '.join(map(str, layer))}" for index, layer in enumerate(layers) if layer]
    return f" (MoE layer {'; '.join(named)})" if named else ""


def _rates(found: RunDifference) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("after the repair", no_wrap=True)
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    for row in found.groups:
        table.add_row(group_name(row.group), _rate(row.a), _rate(row.b), _change(row))
    gold = found.gold
    if gold is not None:
        moved = gold.change
        text = "other questions, or not kept" if moved is None else _interval(moved.increase, moved.low, moved.high)
        table.add_row(group_name(GOLD), f"{gold.a:.4f}", f"{gold.b:.4f}", text)
    return table


def _rate(rate: Rate) -> str:
    if rate.unscored == rate.n:
        return NONE_SCORED
    return f"{rate.rate:.1%}" + (f" ({rate.unscored} unscored)" if rate.unscored else "")


def _change(row: GroupDifference) -> str:
    return "other prompts" if row.change is None else _interval(row.change.difference, row.change.low, row.change.high)


def _interval(middle: float, low: float, high: float) -> str:
    return f"{middle:+.1%} [{low:+.1%}, {high:+.1%}]"


def _checkpoint_facts(found: CheckpointDifference) -> Table:
    experts = sum(len(layer.experts) for layer in found.layers)
    routers = sum(layer.router is not None for layer in found.layers)
    total = len(found.layers) * found.num_experts
    others = {name: f"{name} ({moved:.2e})" for name, moved in found.others.items()}
    rows = [
        ("tensors in both", str(found.tensors)),
        ("experts changed", f"{experts} of {total}"),
        ("routers changed", f"{routers} of {len(found.layers)}"),
        ("others changed", _names(list(others.values()))),
        ("in A only", _names(found.only_a)),
        ("in B only", _names(found.only_b)),
    ]
    return facts(rows)


def _names(names: Sequence[str]) -> str:
    if not names:
        return "0"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)}: {escape(', '.join(names[:_SHOWN]))}{more}"


def _layers(found: CheckpointDifference) -> Table:
    """Changes relative to the norm of A's weights, layer by layer."""
    table = Table(box=None, pad_edge=False)
    for name in ("MoE layer", "decoder layer", "router"):
        table.add_column(name, justify="right")
    table.add_column("experts (relative change)", overflow="fold")
    for layer in found.layers:
        experts = ", ".join(f"{expert} ({moved:.2e})" for expert, moved in layer.experts.items())
        router = "" if layer.router is None else f"{layer.router:.2e}"
        table.add_row(str(layer.layer), str(layer.decoder_layer), router, experts)
    return table
