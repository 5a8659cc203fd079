"""The installed plugins, for `seawall doctor --plugins`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from seawall.data.plugins import PluginCheck


def plugin_document(checks: Sequence[PluginCheck]) -> dict[str, Any]:
    """For `--json`; `problem` is null for a plugin that loads."""
    return {"plugins": [{**asdict(check.record), "problem": check.problem or None} for check in checks]}


def plugin_table(checks: Sequence[PluginCheck]) -> Table:
    """One row per plugin, with its name in recipes."""
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name in recipes", "function", "version", "loads"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        record = check.record
        table.add_row(record.kind, record.name, record.target, record.version, check.problem or "yes")
    return table
