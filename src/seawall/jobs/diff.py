"""`seawall diff`: two evaluations, two runs or two checkpoints side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from seawall.artifacts.groups import GOLD, group_name, rate_text
from seawall.config.data import limited_note
from seawall.config.repair import TRAINED
from seawall.errors import RunFolderError
from seawall.jobs.compared import change_text, evaluation_tables, relative_text
from seawall.jobs.facts import facts
from seawall.models.files.abliteration import SharedDirection
from seawall.models.files.difference import CheckpointDifference, compare_checkpoints
from seawall.shell.comparison import EvaluationDifference, compare_evaluations
from seawall.shell.difference import RunDifference, compare_runs
from seawall.shell.evaluated import is_evaluation, open_evaluation
from seawall.shell.finished import open_finished

FolderKind = Literal["evaluation", "run", "checkpoint"]
Differences = EvaluationDifference | RunDifference | CheckpointDifference
_MARKS: dict[FolderKind, str] = {"run": "resolved.json", "checkpoint": "config.json"}
_REMEDIES: dict[frozenset[FolderKind], str] = {
    frozenset(("evaluation", "run")): "name an evaluation of the run: RUN/eval-before or RUN/eval-after",
    frozenset(("run", "checkpoint")): "name the checkpoint of a run as RUN/model",
    frozenset(("evaluation", "checkpoint")): "evaluate the checkpoint with `seawall eval --model FOLDER`",
}
"""How to compare folders of two kinds."""
_ARTICLES: dict[FolderKind, str] = {"evaluation": "an evaluation", "run": "a run", "checkpoint": "a checkpoint"}
_NAMED = 20
"""Names of a kind in a table; `--json` has all of them."""


def diff(a: Path, b: Path, *, across_templates: bool = False) -> Differences:
    """What differs between two evaluations, two run folders, or two checkpoint folders.

    Args:
        a, b: the folders.
        across_templates: of evaluations: compare models that render prompts differently.

    Raises:
        RunFolderError: a folder is missing, is none of these, or is unfinished; folders of two kinds.
        ArtifactError: damaged files, models of different shapes, or evaluations of different prompts.
        UnsupportedModelError: checkpoints without experts.
    """
    kinds = [_kind(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise RunFolderError(
            f"{a} is {_ARTICLES[kinds[0]]} and {b} {_ARTICLES[kinds[1]]}",
            expected="two evaluations, two runs or two checkpoints",
            remedy=_REMEDIES[frozenset(kinds)],
        )
    if kinds[0] == "evaluation":
        return compare_evaluations(open_evaluation(a), open_evaluation(b), across_templates=across_templates)
    if kinds[0] == "checkpoint":
        return compare_checkpoints(a, b)
    return compare_runs(open_finished(a), open_finished(b))


def document(difference: Differences) -> dict[str, Any]:
    """The JSON document, with `kind` `evaluations`, `runs` or `checkpoints`; NaN and infinity become null."""
    kinds = {EvaluationDifference: "evaluations", RunDifference: "runs", CheckpointDifference: "checkpoints"}
    plain: dict[str, Any] = _plain({"kind": kinds[type(difference)], **asdict(difference)})
    return plain


def difference_tables(difference: Differences) -> Iterator[Table]:
    """The terminal tables."""
    if isinstance(difference, EvaluationDifference):
        yield from evaluation_tables(difference)
        return
    if isinstance(difference, RunDifference):
        yield _run_facts(difference)
        yield _rates(difference)
        return
    yield _checkpoint_facts(difference)
    if any(layer.experts or layer.router is not None for layer in difference.layers):
        yield _layers(difference)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(path: Path) -> FolderKind:
    if is_evaluation(path):
        return "evaluation"
    for kind, mark in _MARKS.items():
        if (path / mark).is_file():
            return kind
    got = "a folder without either file" if path.is_dir() else "a file" if path.exists() else "no such folder"
    raise RunFolderError(
        f"{path} is neither an evaluation nor a run nor a checkpoint",
        got=got,
        expected="a folder of `seawall eval` or a run (resolved.json), or a checkpoint folder (config.json)",
        remedy="check the path; name a Hub model by the folder of its snapshot",
    )


def _run_facts(difference: RunDifference) -> Table:
    experts, (a, b) = difference.experts, difference.repairs
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
            (f"trained in {name}", TRAINED.get(side.parameters, side.parameters)),
            (f"delta of {name}", f"{side.tensors} tensors, {side.slices} expert slices"),
            (f"routing drift of {name}", ", ".join(f"{value:.3f}" for value in side.drift)),
        ]
    notes = (*map(limited_note, difference.limits), difference.unlike)
    rows += [("note", escape(note)) for note in dict.fromkeys(filter(None, notes))]
    return facts(rows)


def _by_layer(layers: Sequence[Sequence[int]]) -> str:
    named = [f"{index}: {' '.join(map(str, layer))}" for index, layer in enumerate(layers) if layer]
    return f" (MoE layer {'; '.join(named)})" if named else ""


def _rates(difference: RunDifference) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("after the repair", no_wrap=True)
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    for row in difference.groups:
        change = "measured differently" if difference.unlike else change_text(row.change)
        table.add_row(group_name(row.group), rate_text(row.a), rate_text(row.b), change)
    gold = difference.gold
    if gold is not None:
        moved = gold.change
        text = "not comparable, or not kept" if moved is None else relative_text(moved.increase, moved.low, moved.high)
        table.add_row(group_name(GOLD), f"{gold.a:.4f}", f"{gold.b:.4f}", text)
    return table


def _checkpoint_facts(difference: CheckpointDifference) -> Table:
    experts = sum(len(layer.experts) for layer in difference.layers)
    routers = sum(layer.router is not None for layer in difference.layers)
    total = len(difference.layers) * difference.num_experts
    rows = [
        ("tensors in both", str(difference.tensors)),
        ("experts changed", f"{experts} of {total}"),
        ("routers changed", f"{routers} of {len(difference.layers)}"),
        ("others changed", _names([f"{name} ({moved:.2e})" for name, moved in difference.others.items()])),
        ("abliterated", abliteration_text(difference.direction)),
        ("in A only", _names(difference.only_a)),
        ("in B only", _names(difference.only_b)),
    ]
    return facts(rows)


def abliteration_text(direction: SharedDirection | None) -> str:
    """Whether B is A with a single direction removed from what its layers write to the residual stream."""
    if direction is None:
        return "no: no matrix that writes to the residual stream changed"
    along = f"{direction.layers_along} of {direction.layers} changed layers lost a single shared direction"
    medians = (
        f"medians: {direction.share:.0%} of a change in its top direction, agreement {direction.agreement:.2f}, "
        f"{direction.removed:.0%} of it removed"
    )
    if not direction.abliterated:
        return f"no: {along} ({medians})"
    return f"yes: {along}{', the embedding too' if direction.embedding else ''} ({medians})"


def _names(names: Sequence[str]) -> str:
    if not names:
        return "0"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)}: {escape(', '.join(names[:_NAMED]))}{more}"


def _layers(difference: CheckpointDifference) -> Table:
    """Changes relative to the norm of A's weights, by layer."""
    table = Table(box=None, pad_edge=False)
    for name in ("MoE layer", "decoder layer", "router"):
        table.add_column(name, justify="right")
    table.add_column("experts (relative change)", overflow="fold")
    for layer in difference.layers:
        experts = ", ".join(f"{expert} ({moved:.2e})" for expert, moved in layer.experts.items())
        router = "" if layer.router is None else f"{layer.router:.2e}"
        table.add_row(str(layer.layer), str(layer.decoder_layer), router, experts)
    return table
