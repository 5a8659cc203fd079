"""`seawall report`, and the inputs of every page, collected from a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.directions import Directions
from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.steering import HARDENING, STEER, SteeringResult
from seawall.artifacts.tuning import TuningResult
from seawall.config.audit import AUDITS
from seawall.config.recipe import Recipe
from seawall.evaluation.compare import Comparison, compare
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.methods.audit.methods import audit_view
from seawall.methods.steer.view import steering_view
from seawall.methods.tune.view import tuning_view
from seawall.report import render_report, render_steering, render_tuning
from seawall.report.audits import AuditView
from seawall.report.inputs import GroupRow, ReportInputs, SampleRow
from seawall.report.steering import SteeringView
from seawall.runs.files import read_json, read_metrics, storage_errors, write_text
from seawall.runs.folder import RunFolder, locked
from seawall.runs.publish import copy_file
from seawall.runs.stage import finished_stage, is_done
from seawall.shell.finished import open_finished

SHOWN_PER_GROUP = 12


def collect(run: RunFolder, summary: Mapping[str, Any]) -> ReportInputs:
    """The inputs of report and model card, from a run with all stages up to `eval-after`."""
    recipe = read_json(run.resolved)
    profile = ExpertProfile.load(run.stage("profile"))
    chosen = ExpertSet.load(run.stage("select"))
    outcome = read_json(run.stage("repair") / "outcome.json")
    before, after = (load_samples(run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after"))
    settings = recipe["eval"]
    compared = compare(before, after, resamples=settings["bootstrap"], seed=settings["seed"])
    dropped: dict[str, Counter[str]] = {}
    for pair in profile.dropped:
        dropped.setdefault(pair.attack_name, Counter())[pair.reason.partition(":")[0]] += 1
    manifest = read_json(run.manifest)
    return ReportInputs(
        summary={"parity": None, **summary},
        recipe=recipe,
        manifest=manifest,
        groups=[_row(comparison, summary) for comparison in compared.values()],
        gaps=chosen.scores_LE.tolist(),
        selected=chosen.layers,
        stability=chosen.stability,
        kept=Counter(pair.attack_name for pair in profile.pairs),
        dropped=dropped,
        updates=read_metrics(run.stage("repair") / "metrics.jsonl"),
        rounds=[outcome["before"], *outcome["rounds"]],
        chosen_round=outcome["chosen_round"],
        drift=outcome["routing_drift"],
        samples=_side_by_side(before, after),
        base_license=manifest["model"].get("license"),
        audits=_audits(run),
        steering=_steering(run) if is_done(run, STEER) else None,
    )


def write_report(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Writes `report.html` from the run folder; removes `steering.html`, whose content it includes."""
    write_text(run.report, render_report(collect(run, summary)))
    run.steering_report.unlink(missing_ok=True)


def write_steering_page(run: RunFolder, recipe: Recipe) -> None:
    """Writes `steering.html`, for a run without a repair."""
    page = render_steering(
        _steering(run),
        model=recipe.model.id,
        recipe=recipe.model_dump(mode="json"),
        manifest=read_json(run.manifest),
    )
    write_text(run.steering_report, page)


def write_tuning_page(run: RunFolder, recipe: Recipe, result: TuningResult) -> None:
    """Writes `tuning.html`."""
    page = render_tuning(
        tuning_view(result),
        model=recipe.model.id,
        recipe=recipe.model_dump(mode="json"),
        manifest=read_json(run.manifest),
    )
    write_text(run.tuning_report, page)


def rewrite_report(path: Path) -> Path:
    """Writes the report of a finished run again, with audits made in the meantime; returns its path.

    Raises:
        RunFolderError: no run, or an unfinished one.
        ArtifactError: a file is damaged or was changed.
    """
    finished = open_finished(path)
    with storage_errors(path), locked(path):
        write_report(finished.run, finished.summary)
    return finished.run.report


def audit_stage(run: RunFolder, name: str) -> Path:
    """The folder of a finished audit.

    Raises:
        ArtifactError: a file of the audit was changed.
    """
    return finished_stage(run, f"audit/{name}")


def copy_samples(run: RunFolder) -> None:
    """Copies all prompts, completions and verdicts into `samples/`."""
    run.samples.mkdir(exist_ok=True)
    for when in ("before", "after"):
        copy_file(run.stage(f"eval-{when}") / SAMPLES, run.samples / f"{when}.jsonl")
    copy_file(run.stage("profile") / "pairs.jsonl", run.samples / "pairs.jsonl")


def _audits(run: RunFolder) -> list[AuditView]:
    results = [AuditResult.load(audit_stage(run, name)) for name in AUDITS if is_done(run, f"audit/{name}")]
    return [audit_view(result) for result in results]


def _steering(run: RunFolder) -> SteeringView:
    folder = finished_stage(run, STEER)
    hardening = Hardening.load(folder / HARDENING) if (folder / HARDENING).is_dir() else None
    return steering_view(SteeringResult.load(folder), Directions.load(folder), hardening)


def _row(comparison: Comparison, summary: Mapping[str, Any]) -> GroupRow:
    family = comparison.group.removeprefix(ATTACK)
    is_seen = bool(summary["attacks"][family]["seen"]) if comparison.group.startswith(ATTACK) else None
    change = comparison.change
    moved = Rate(change.difference, change.low, change.high, comparison.after.n, comparison.after.unscored)
    return GroupRow(comparison.group, is_seen, comparison.before, comparison.after, moved, change.p)


def _side_by_side(before: list[Sample], after: list[Sample]) -> list[SampleRow]:
    """The first samples of each group; `samples/` holds all of them."""
    later = {sample.id: sample for sample in after}
    counts: Counter[str] = Counter()
    rows = []
    for sample in before:
        counts[sample.group] += 1
        if counts[sample.group] > SHOWN_PER_GROUP:
            continue
        sample_after = later[sample.id]
        rows.append(
            SampleRow(
                group=sample.group,
                goal=sample.goal,
                prompt="\n\n".join(f"{message.role}: {message.content}" for message in sample.prompt),
                before=sample.response,
                after=sample_after.response,
                verdict_before=sample.label,
                verdict_after=sample_after.label,
                reason=sample_after.reason,
            )
        )
    return rows
