"""`seawall audit`: each audit is a stage of its own under RUN/audit/, done once and published whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.store import require_model
from seawall.config.audit import AuditName
from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError
from seawall.evaluation.suite import build_suite
from seawall.jobs.report import audit_stage, write_report
from seawall.methods.audit.bench import Subject, repaired_tensors
from seawall.methods.audit.methods import AUDITS
from seawall.methods.rasa.stages import profile_stage
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.runs.stage import finished_stage, stage_hash
from seawall.shell.context import Context
from seawall.shell.finished import open_finished
from seawall.shell.job import claiming_stage, new_run, read_inputs

NEEDS_RUN: dict[AuditName, str] = {
    "routing_shortcut": "compares the repaired model with the original",
    "tamper": "compares the repaired model with the original",
}
"""Audits that a model alone is not enough for, and why."""
_READS_PROMPTS: tuple[AuditName, ...] = ("localisation", "tamper")
"""Audits that read more of the recipe's prompts than a run's samples hold."""


def audit_run(
    path: Path, *, only: Sequence[AuditName], changes: Sequence[str], reporter: Reporter
) -> list[AuditResult]:
    """Audits a finished run and puts what was found into its report; audits that are done are skipped.

    The prompts are those of the run's own evaluation, whose samples serve for the original and the repaired model.

    Args:
        path: the run folder.
        only: which audits; none means all.
        changes: `audit.a=b` each.
        reporter: told what happens.

    Raises:
        SeawallError: no finished run, another model than the run's, a wrong setting.
    """
    finished = open_finished(path)
    recipe = change_recipe(finished.recipe, changes, where=str(finished.run.resolved), section="audit")
    context = Context(recipe, finished.run, reporter, read_inputs(recipe))
    with context.working():
        original = finished.before.result.model_fingerprint
        require_model(context.opened.fingerprint, expected=original, artifact="run")
        subject = Subject(
            context,
            before=finished.before.samples,
            after=finished.after.samples,
            repaired=repaired_tensors(context),
            repaired_fingerprint=finished.after.result.model_fingerprint,
            profile=ExpertProfile.load(finished_stage(finished.run, "profile")),
        )
        depends = {when: stage_hash(finished.run, f"eval-{when}") for when in ("before", "after")}
        found = [_audit(name, subject, depends) for name in only or AUDITS]
        reporter.stage("Report")
        write_report(finished.run, finished.summary)
    return found


def audit_model(
    recipe: Recipe, folder: Path, *, text: str, only: Sequence[AuditName], reporter: Reporter
) -> list[AuditResult]:
    """Audits a model that was not repaired; the folder becomes a run that holds its profile and the audits.

    Args:
        recipe: names the model and the prompts.
        folder: the run folder.
        text: the recipe as the user wrote it.
        only: which audits; none means all that need no repair.
        reporter: told what happens.

    Raises:
        SeawallError: an audit that needs a finished run; something else that the user can put right.
    """
    for name in only:
        if name in NEEDS_RUN:
            raise ConfigError(
                f"the audit {name} needs a finished run: it {NEEDS_RUN[name]}",
                got="a model",
                remedy="name a folder that `seawall run` finished, or leave this audit out of --only",
            )
    prompts = read_inputs(recipe)
    context = Context(recipe, new_run(recipe, folder, text), reporter, prompts)
    with context.working():
        profile = profile_stage(context)
        subject = Subject(context, asked=tuple(build_suite(context.prompts, gold=False).prompts()), profile=profile)
        depends = {"prompts": context.prompts.fingerprint()}
        return [_audit(name, subject, depends) for name in only or [one for one in AUDITS if one not in NEEDS_RUN]]


def parse_names(text: str | None) -> list[AuditName]:
    """The audits in `a,b`; none for None.

    Raises:
        ConfigError: a name that is no audit.
    """
    found = []
    for word in (text or "").split(",") if text is not None else ():
        name = next((one for one in AUDITS if one == word.strip()), None)
        if name is None:
            raise ConfigError("--only names an unknown audit", got=repr(word.strip()), expected=", ".join(AUDITS))
        found.append(name)
    return list(dict.fromkeys(found))


def document(run: Path, found: Sequence[AuditResult]) -> dict[str, object]:
    """For machines: where the audits lie, and all that they found."""
    return {
        "run": str(run),
        "audits": {one.audit: read_json(audit_stage(RunFolder(run), one.audit) / "audit.json") for one in found},
    }


def _audit(name: AuditName, subject: Subject, depends: Mapping[str, str]) -> AuditResult:
    context = subject.context
    context.reporter.stage(f"Audit: {name.replace('_', ' ')}")
    work = AUDITS[name].measure
    settings = context.recipe.audit.model_dump(mode="json")
    basis = context.basis()
    prompts = basis.pop("prompts")
    inputs = {
        **basis,
        "repaired": subject.repaired_fingerprint,
        "audit": {name: settings[name], "seed": settings["seed"]},
        "eval": context.recipe.eval.model_dump(mode="json"),
        "profile": stage_hash(context.run, "profile"),
        **depends,
    }
    if name in _READS_PROMPTS:
        inputs["prompts"] = prompts
    return claiming_stage(
        context,
        f"audit/{name}",
        inputs,
        work=lambda _, scratch: work(subject, scratch).save(scratch),
        load=AuditResult.load,
    )
