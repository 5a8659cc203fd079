"""Measures a recipe's judge on replies that were labelled by reading."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from seawall.config.judge import JudgeConfig
from seawall.data.types import EVADES
from seawall.evaluation.agreement import Agreement, agreement, read_labelled
from seawall.evaluation.judges import make_judge
from seawall.visible import visible_line

_SHOWN = 20
"""Disagreements in the terminal; `--json` holds all."""


def measure_judge(config: JudgeConfig, path: Path) -> Agreement:
    """How far a judge agrees with a file of labelled replies.

    Args:
        config: the judge.
        path: JSONL or CSV of labelled replies, see `seawall.evaluation.agreement.read_labelled`.

    Raises:
        DataError: the file cannot be used.
        SeawallError: the judge cannot be used.
    """
    labelled = read_labelled(path)  # before any weights are loaded
    return agreement(make_judge(config), labelled)


def agreement_table(result: Agreement) -> Table:
    """One row per kind of reply."""
    table = Table(box=None, pad_edge=False)
    table.add_column("kind", overflow="fold")
    for heading in ("replies", "agree", "share"):
        table.add_column(heading, justify="right")
    for kind in result.kinds:
        judged = result.of_kind(kind)
        agree = sum(row.agrees for row in judged)
        table.add_row(visible_line(kind), str(len(judged)), str(agree), f"{agree / len(judged):.0%}")
    return table


def agreement_lines(result: Agreement) -> list[str]:
    """The share of agreement with its interval, and the first disagreements."""
    document = result.document()
    wrong = [row for row in result.judged if not row.agrees]
    lines = [
        f"{result.judge} agrees on {document['agree']} of {document['replies']}: {document['agreement']:.1%} "
        f"(95 % interval {document['low']:.1%} to {document['high']:.1%})"
    ]
    lines += [
        f"{row.reply.where}: read as {row.reply.expected}, judged {row.verdict.outcome}: "
        f"{row.verdict.reason.removeprefix(EVADES)}"
        for row in wrong[:_SHOWN]
    ]
    if len(wrong) > _SHOWN:
        lines.append(f"{len(wrong) - _SHOWN} more disagreements; --json lists all")
    return [visible_line(line) for line in lines]
