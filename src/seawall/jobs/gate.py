"""`seawall gate`: check a finished run, or an evaluation, against bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from seawall.artifacts.groups import NONE_SCORED, group_name
from seawall.config.data import limited_note
from seawall.errors import ArtifactError, ConfigError
from seawall.evaluation.gate import OF_CHANGE, Bounds, Check, Evidence, check_bounds, option
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.shell.comparison import shared_samples
from seawall.shell.conditions import require_comparable, same_capability
from seawall.shell.evaluated import FinishedEvaluation, is_evaluation, open_evaluation
from seawall.shell.exports import Export, check_exports
from seawall.shell.finished import open_finished


@dataclass(frozen=True, slots=True)
class Gate:
    """The result of every bound and export.

    Attributes:
        run: the run folder.
        model: fingerprint of the evaluated weights.
        checks: a check per bound and group.
        exports: a check per exported folder.
        unrepaired: the reason why the run kept the original model; empty for a repaired one.
        against: the evaluation that changes are measured from; None without one.
        of_run: whether a run is checked; otherwise an evaluation alone.
        limit: maximum number of prompts of every group, where they are a limited sample.
    """

    run: str
    model: str
    checks: tuple[Check, ...]
    exports: tuple[Export, ...] = ()
    unrepaired: str = ""
    against: str | None = None
    of_run: bool = True
    limit: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every bound holds, and every exported folder holds the evaluated repair."""
        return all(check.passed for check in self.checks) and all(export.passed for export in self.exports)

    def document(self) -> dict[str, Any]:
        """The JSON document; NaN and infinity (the loss of a broken model) become null."""
        own = {"repaired": not self.unrepaired} if self.of_run else {"against": self.against}
        return {
            "run" if self.of_run else "evaluation": self.run,
            "model": self.model,
            "passed": self.passed,
            **own,
            **({} if self.limit is None else {"limit": self.limit}),
            "checks": list(map(_row, self.checks)),
            "exports": [asdict(export) | {"passed": export.passed} for export in self.exports],
        }

    def verdict(self) -> list[str]:
        """One line per export, and one that names the weights that passed or failed."""
        lines = [f"{export.name}/  {'pass' if export.passed else f'FAIL: {export.problem}'}" for export in self.exports]
        if self.limit is not None:
            lines.append(limited_note(self.limit))
        if self.unrepaired:
            lines.append(f"not repaired, these are the weights of the original model: {self.unrepaired}")
        return [*lines, f"{'passed' if self.passed else 'FAILED'}  weights {self.model}"]


def gate_folder(path: Path, bounds: Bounds, *, against: Path | None = None, across_templates: bool = False) -> Gate:
    """`gate_evaluation` of an evaluation, `gate_run` of a run.

    Raises:
        ConfigError: an evaluation to measure changes from, for a run, which has its own.
        SeawallError: as these.
    """
    if is_evaluation(path):
        return gate_evaluation(path, bounds, against=against, across_templates=across_templates)
    if against is not None:
        raise ConfigError(
            f"{path} is no evaluation",
            got="--against",
            remedy="leave out --against: a run is compared with its own evaluation before the repair",
        )
    return gate_run(path, bounds)


def gate_run(path: Path, bounds: Bounds) -> Gate:
    """Checks a run's evaluations against bounds, and its exports against the evaluated weights.

    Raises:
        RunFolderError: no run, or an unfinished one.
        ArtifactError: damaged files, or a bound on a rate that was not measured.
    """
    finished = open_finished(path)
    unseen = frozenset(name for name, family in finished.summary["attacks"].items() if not family["seen"])
    evidence = Evidence(
        finished.before.samples,
        finished.after.samples,
        results=(finished.before.result, finished.after.result),
        unseen=unseen,
        resamples=finished.resamples,
        seed=finished.seed,
    )
    checks = tuple(check_bounds(bounds, evidence))
    choice = finished.summary.get("repair") or {}
    unrepaired = str(choice["reason"]) if choice.get("chosen_round") == 0 else ""
    exports, limit = check_exports(finished), finished.summary.get("limit")
    return Gate(str(path), finished.after.result.model_fingerprint, checks, exports, unrepaired, limit=limit)


def gate_evaluation(path: Path, bounds: Bounds, *, against: Path | None = None, across_templates: bool = False) -> Gate:
    """Checks one evaluation against bounds; changes are measured from another evaluation of the same prompts.

    Args:
        path: the evaluation: a folder of `seawall eval`.
        bounds: the bounds.
        against: the evaluation of the model before, such as a fine-tune's base; None leaves changes unmeasured.
        across_templates: compare models that render prompts differently.

    Raises:
        RunFolderError: no evaluation, or an unfinished one.
        ConfigError: a bound on a change without an evaluation to measure it from, or on families of a repair.
        ArtifactError: damaged files, other prompts, or a bound on a rate that was not measured.
    """
    _require_measurable(bounds, against)
    after = open_evaluation(path)
    before = after if against is None else open_evaluation(against)
    if against is not None:
        require_comparable(before, after, across_templates=across_templates)
        _require_changes(bounds, before, after)
    alone = Evidence(after.samples, after.samples, (after.result, after.result), frozenset(), *_draws(after))
    paired = Evidence(*shared_samples(before, after), (before.result, after.result), frozenset(), *_draws(before))
    checks: list[Check] = []
    for evidence, changes in ((alone, False), (paired, True)):
        part = bounds.part(changes=changes)
        checks += [] if part is None else check_bounds(part, evidence)
    base = None if against is None else str(against)
    fingerprint = after.result.model_fingerprint
    return Gate(str(path), fingerprint, tuple(checks), against=base, of_run=False, limit=after.limit)


def _draws(evaluation: FinishedEvaluation) -> tuple[int, int]:
    return evaluation.resamples, evaluation.seed


def _require_measurable(bounds: Bounds, against: Path | None) -> None:
    if bounds.max_asr_unseen is not None:
        raise ConfigError(
            "--max-asr-unseen bounds families that a repair did not train on",
            got="an evaluation, which belongs to no repair",
            remedy="bound every family with --max-asr, or name the folder of a run",
        )
    changes = bounds.part(changes=True)
    if against is None and changes is not None:
        raise ConfigError(
            f"{', '.join(map(option, changes.limits()))} bounds a change",
            got="one evaluation",
            expected="an evaluation to measure the change from",
            remedy="add --against BASE, the folder of a `seawall eval` of the model before, on the same prompts",
        )


def _require_changes(bounds: Bounds, before: FinishedEvaluation, after: FinishedEvaluation) -> None:
    """Refuses a bound on a change that would be checked in part, or between unlike scores.

    Raises:
        ArtifactError: one evaluation alone has a bounded group, or the scores of capability were measured differently.
    """
    for name in bounds.limits():
        sides = [set(OF_CHANGE.get(name, ())) & evaluation.result.groups.keys() for evaluation in (before, after)]
        if sides[0] != sides[1]:
            groups = sorted(sides[0] ^ sides[1])
            raise ArtifactError(
                f"{option(name)} bounds a change that was measured in part",
                got=f"{', '.join(map(group_name, groups))} in one of the two evaluations alone",
                expected="the same groups in both",
                remedy="evaluate both models with the same recipe, or leave out the option",
            )
    scored = before.result.capability and after.result.capability
    if bounds.max_capability_drop is not None and scored and not same_capability(before, after):
        raise ArtifactError(
            "the scores of capability were measured differently",
            expected="the same tasks, settings, files of examples and seed (eval.capability, eval.seed)",
            remedy="evaluate both models with the same recipe, or leave out --max-capability-drop",
        )


def recipe_bounds(path: Path, **bounds: float | None) -> Bounds:
    """The bounds of a run's recipe, with those given in their place.

    The bounds are those of the run's last summary, since a recipe's section `gate` may change after the repair. An
    evaluation has none of its own.

    Raises:
        RunFolderError: no run.
        ConfigError: neither the recipe nor the caller sets a bound, or a bound is out of range.
    """
    summary = (RunFolder(path) if is_evaluation(path) else RunFolder.existing(path)).summary
    gate = read_json(summary).get("gate") if summary.is_file() else None
    given = {name: limit for name, limit in bounds.items() if limit is not None}
    return Bounds(**{**(gate["bounds"] if gate else {}), **given})


def gate_document(bounds: Mapping[str, float], evidence: Evidence) -> dict[str, Any] | None:
    """`gate` of `summary.json`: the recipe's bounds, their checks, and what could not be checked; null without bounds.

    A bound that cannot be checked is a problem of the verdict, not an error: the numbers of the run stand.
    """
    if not bounds:
        return None
    try:
        checks, problem = check_bounds(Bounds(**bounds), evidence), None
    except ArtifactError as error:
        checks, problem = [], str(error)
    passed = problem is None and all(check.passed for check in checks)
    return {"bounds": dict(bounds), "passed": passed, "problem": problem, "checks": list(map(_row, checks))}


def gate_table(gate: Gate) -> Table:
    """One row per check."""
    table = Table(box=None, pad_edge=False)
    for name in ("bound", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("limit", "measured", "95 % bound", "replies"):
        table.add_column(name, justify="right")
    table.add_column("result")
    for check in gate.checks:
        measured = NONE_SCORED if check.measured is None else f"{check.measured:z.2%}"
        counts = ((check.evades, "evade"), (check.unscored, "unscored"))
        apart = "".join(f", {count} {word}" for count, word in counts if count)
        row = (
            option(check.bound),
            group_name(check.group),
            f"{check.limit:.2%}",
            measured,
            f"{check.decisive:z.2%}",
            f"{check.n}{apart}",
            _result(check),
        )
        table.add_row(*row, style=None if check.passed else "bold")
    return table


def _result(check: Check) -> str:
    if check.undecided:
        return "FAIL: the estimate holds, the interval does not"
    return "pass" if check.passed else "FAIL"


def _row(check: Check) -> dict[str, Any]:
    return {
        "bound": check.bound,
        "group": check.group,
        "limit": check.limit,
        "measured": _number(check.measured),
        "decisive": _number(check.decisive),
        "n": check.n,
        "unscored": check.unscored,
        "evades": check.evades,
        "passed": check.passed,
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
