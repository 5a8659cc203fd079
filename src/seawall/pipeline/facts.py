"""Models and plans as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from seawall.models.inspect import ModelSummary
from seawall.models.plan import Plan


def facts(rows: list[tuple[str, str]]) -> Table:
    """Names and values, a row each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def model_facts(found: ModelSummary) -> Table:
    """What `seawall doctor` prints."""
    rows = [
        ("model", found.id),
        ("class", f"{found.architecture} ({found.family})"),
        ("parameters", f"{found.parameters / 1e6:,.1f} M, {found.active_parameters / 1e6:,.1f} M used per token"),
        ("on disk", f"{size(found.bytes_on_disk)}, {found.dtype}"),
        ("chat template", "yes" if found.chat_template else "no"),
    ]
    if found.moe is not None:
        moe = found.moe
        rows += [
            ("experts", f"{moe.layers} MoE layers x {moe.experts} experts, top-{moe.top_k}"),
            ("shared experts", str(moe.shared_experts)),
            ("expert tensors", ", ".join(f"{name} {tuple(shape)}" for name, shape in moe.expert_tensors)),
        ]
    return facts([*rows, ("verdict", found.verdict)])


def plan_facts(plan: Plan) -> Table:
    """What `seawall plan` prints."""
    rows = [
        ("weights", size(plan.weights)),
        ("trainable copies", size(plan.trainable)),
        ("gradients", size(plan.gradients)),
        ("optimizer", size(plan.optimizer)),
        ("activations, at most", size(plan.activations)),
        ("key-value cache, at most", size(plan.cache)),
        ("peak memory, at most", size(plan.peak)),
        ("disk: run folder", size(plan.run_folder)),
        ("disk: exported model", size(plan.export)),
    ]
    if plan.seconds is not None:
        rows.append(("time, at most", f"{plan.seconds / 60:,.0f} min"))
    return facts(rows)
