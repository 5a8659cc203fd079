"""Collects the artifacts of a run folder into the inputs of its report, and writes the pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.directions import Directions
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK, POOLED, attack_group, is_attack
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.steering import HARDENING, STEER, SteeringResult
from seawall.artifacts.tuning import TuningResult
from seawall.config.audit import AUDITS
from seawall.config.recipe import Recipe
from seawall.evaluation.compare import Comparison, compare
from seawall.evaluation.pooled import with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.jobs.export import CARD
from seawall.methods.audit.methods import audit_view
from seawall.methods.steer.view import steering_view
from seawall.methods.tune.view import tuning_view
from seawall.report import render_model_card, render_report, render_steering, render_tuning
from seawall.report.audits import AuditView
from seawall.report.hub_results import EVAL_RESULTS, render_hub_results
from seawall.report.inputs import GroupRow, ReportInputs, SampleRow
from seawall.report.steering import SteeringView
from seawall.runs.files import read_json, read_metrics, storage_errors, write_text
from seawall.runs.folder import RunFolder
from seawall.runs.lock import locked
from seawall.runs.publish import copy_file
from seawall.runs.stage import finished_stage, is_done
from seawall.shell.finished import open_finished

SHOWN_PER_GROUP = 12


def collect(run: RunFolder, summary: Mapping[str, Any]) -> ReportInputs:
    """The inputs of report and model card, from a run whose stages up to `eval-after` are done."""
    recipe, manifest = read_json(run.resolved), read_json(run.manifest)
    profile = ExpertProfile.load(run.stage("profile"))
    outcome = read_json(run.stage("repair") / "outcome.json")
    before, after = (load_samples(run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after"))
    draws = {"resamples": recipe["eval"]["bootstrap"], "seed": recipe["eval"]["seed"]}
    comparisons = compare(before, after, **draws)
    return ReportInputs(
        summary={"parity": None, **summary},
        recipe=recipe,
        manifest=manifest,
        groups=[_row(comparison, summary) for comparison in comparisons.values()],
        experts=ExpertSet.load(run.stage("select")),
        pairs=profile.pairs,
        dropped=profile.dropped,
        updates=read_metrics(run.stage("repair") / "metrics.jsonl"),
        rounds=[] if outcome["before"] is None else [outcome["before"], *outcome["rounds"]],
        chosen_round=outcome["chosen_round"],
        choice=outcome.get("reason", ""),
        drift=outcome["routing_drift"],
        samples=_side_by_side(before, after),
        base_license=manifest["model"].get("license"),
        audits=_audits(run),
        steering=_steering(run) if is_done(run, STEER) else None,
        pooled={seen: row for seen in (True, False) if (row := _pooled(before, after, summary, seen=seen, **draws))},
    )


def model_documents(run: RunFolder, summary: Mapping[str, Any]) -> dict[str, str]:
    """The texts that lie beside exported weights, by their path: the model card, and the rates for the Hub.

    Rates whose prompts came from no data set of the Hub have no place there; without any other there is no such file.
    """
    inputs = collect(run, summary)
    rates = group_rates(with_pooled(load_samples(run.stage("eval-after") / SAMPLES)))
    results = render_hub_results(rates, inputs.recipe, inputs.manifest, stage="eval-after")
    return {CARD: render_model_card(inputs), **({EVAL_RESULTS: results.text} if results.text else {})}


def write_report(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Writes `report.html` from the run folder. It contains all of `steering.html`, which is removed."""
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
    """Writes the report of a finished run again, with audits made since; returns its path.

    Raises:
        RunFolderError: the folder holds no run, or one that is not finished.
        ArtifactError: a file is damaged or was changed.
    """
    finished = open_finished(path)
    with storage_errors(path), locked(path):
        write_report(finished.run, finished.summary)
    return finished.run.report


def audit_stage(run: RunFolder, name: str) -> Path:
    """The folder of a finished audit.

    Raises:
        ArtifactError: a file was changed since the audit.
    """
    return finished_stage(run, f"audit/{name}")


def copy_samples(run: RunFolder) -> None:
    """Collects every prompt, completion and verdict in `samples/`."""
    run.samples.mkdir(exist_ok=True)
    for when in ("before", "after"):
        copy_file(run.stage(f"eval-{when}") / SAMPLES, run.samples / f"{when}.jsonl")
    copy_file(run.stage("profile") / "pairs.jsonl", run.samples / "pairs.jsonl")


def _audits(run: RunFolder) -> list[AuditView]:
    names = [name for name in AUDITS if is_done(run, f"audit/{name}")]
    return [audit_view(AuditResult.load(audit_stage(run, name))) for name in names]


def _steering(run: RunFolder) -> SteeringView:
    folder = finished_stage(run, STEER)
    hardening = Hardening.load(folder / HARDENING) if (folder / HARDENING).is_dir() else None
    return steering_view(SteeringResult.load(folder), Directions.load(folder), hardening)


def _row(comparison: Comparison, summary: Mapping[str, Any]) -> GroupRow:
    """A comparison, whose record `report` may not import, with what the summary says of an attack family."""
    group, after, change = comparison.group, comparison.after, comparison.change
    trained_on = bool(summary["attacks"][group.removeprefix(ATTACK)]["seen"]) if is_attack(group) else None
    return GroupRow(group, trained_on, comparison.before, after, change)


def _pooled(
    before: list[Sample], after: list[Sample], summary: Mapping[str, Any], *, seen: bool, resamples: int, seed: int
) -> GroupRow | None:
    """The attack families that the repair trained on, or the others, as one group; None without any."""
    families = {attack_group(name) for name, family in summary["attacks"].items() if family["seen"] == seen}
    sides = [[replace(sample, group=POOLED) for sample in side if sample.group in families] for side in (before, after)]
    if not sides[0]:
        return None
    (comparison,) = compare(*sides, resamples=resamples, seed=seed).values()
    return GroupRow(POOLED, seen, comparison.before, comparison.after, comparison.change)


def _side_by_side(before: list[Sample], after: list[Sample]) -> list[SampleRow]:
    """The first samples of every group; `samples/` holds all of them."""
    pairs = {sample.id: sample for sample in after}
    counts: Counter[str] = Counter()
    rows = []
    for sample in before:
        counts[sample.group] += 1
        if counts[sample.group] <= SHOWN_PER_GROUP:
            rows.append(SampleRow(sample, pairs[sample.id]))
    return rows
