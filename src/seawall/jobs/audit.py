"""`seawall audit`: audits of a finished run or of a model, each a stage under RUN/audit/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.store import require_model
from seawall.config.audit import AuditName
from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.distributed.process import require_joined
from seawall.errors import ConfigError
from seawall.evaluation.suite import build_suite
from seawall.jobs.report import audit_stage, write_report
from seawall.methods.audit.context import AuditSubject, repaired_tensors
from seawall.methods.audit.methods import AUDITS
from seawall.methods.rasa.stages import profile_stage
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.runs.stage import finished_stage, stage_hash
from seawall.shell.context import Context
from seawall.shell.finished import open_finished
from seawall.shell.job import claiming_stage, new_run, read_inputs
from seawall.shell.plugins import require_own_recipe

NEEDS_RUN: dict[AuditName, str] = {
    "routing_shortcut": "compares the repaired model with the original",
    "patching": "compares the repaired model with the original",
    "tamper": "compares the repaired model with the original",
}
"""Audits that need a finished run, and the reason."""
_READS_PROMPTS: tuple[AuditName, ...] = ("localisation", "tamper")
"""Audits that read prompts of the recipe beyond those in a run's samples."""


def audit_run(
    path: Path, *, only: Sequence[AuditName], changes: Sequence[str], reporter: Reporter
) -> list[AuditResult]:
    """Audits a finished run and writes its report again; finished audits are skipped.

    The prompts are those of the run's evaluation, whose samples are reused for the original and the repaired model.

    Args:
        path: the run folder.
        only: names of audits; empty for all.
        changes: settings as `audit.KEY=VALUE`.
        reporter: receives progress and claims.

    Raises:
        SeawallError: no finished run, another model than the run's, or an invalid setting.
    """
    require_joined()
    finished = open_finished(path)
    recipe = change_recipe(finished.recipe, changes, where=str(finished.run.resolved), section="audit")
    require_own_recipe(recipe, path)
    context = Context(recipe, finished.run, reporter, read_inputs(recipe), verbs=("audit",))
    with context.working():
        original = finished.before.result.model_fingerprint
        require_model(context.opened.fingerprint, expected=original, artifact="run")
        subject = AuditSubject(
            context,
            before=finished.before.samples,
            after=finished.after.samples,
            repaired=repaired_tensors(context),
            repaired_fingerprint=finished.after.result.model_fingerprint,
            profile=ExpertProfile.load(finished_stage(finished.run, "profile")),
        )
        evaluations = {when: stage_hash(finished.run, f"eval-{when}") for when in ("before", "after")}
        results = [_audit(name, subject, evaluations) for name in audits_of(only, is_run=True)]
        reporter.stage("Report")
        write_report(finished.run, finished.summary)
    return results


def audit_model(
    recipe: Recipe, folder: Path, *, text: str, only: Sequence[AuditName], reporter: Reporter
) -> list[AuditResult]:
    """Audits a model without a repair; the folder becomes a run with its profile and the audits.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        only: names of audits; empty for all that need no repair.
        reporter: receives progress and claims.

    Raises:
        SeawallError: an audit that needs a finished run, or another error that the user can correct.
    """
    for name in only:
        if name in NEEDS_RUN:
            raise ConfigError(
                f"the audit {name} needs a finished run: it {NEEDS_RUN[name]}",
                got="a model",
                remedy="name the folder of a finished `seawall run`, or leave this audit out of --only",
            )
    prompts = read_inputs(recipe)
    context = Context(recipe, new_run(recipe, folder, text), reporter, prompts, verbs=("profile", "audit"))
    with context.working():
        profile = profile_stage(context)
        subject = AuditSubject(
            context, suite=tuple(build_suite(context.prompts, gold=False).prompts()), profile=profile
        )
        prompts_hash = {"prompts": context.prompts.fingerprint()}
        return [_audit(name, subject, prompts_hash) for name in audits_of(only, is_run=False)]


def audits_of(only: Sequence[AuditName], *, is_run: bool) -> list[AuditName]:
    """The audits that are asked for: by default all of a run, and those of a model that need no repair."""
    return list(only) or [name for name in AUDITS if is_run or name not in NEEDS_RUN]


def parse_names(text: str | None) -> list[AuditName]:
    """The audits named in `a,b`; empty for None.

    Raises:
        ConfigError: an unknown name.
    """
    names = []
    for word in (text or "").split(",") if text is not None else ():
        name = next((audit for audit in AUDITS if audit == word.strip()), None)
        if name is None:
            raise ConfigError("--only names an unknown audit", got=repr(word.strip()), expected=", ".join(AUDITS))
        names.append(name)
    return list(dict.fromkeys(names))


def document(run: Path, results: Sequence[AuditResult]) -> dict[str, object]:
    """The JSON document: the run folder and the results."""
    return {
        "run": str(run),
        "audits": {
            result.audit: read_json(audit_stage(RunFolder(run), result.audit) / "audit.json") for result in results
        },
    }


def _audit(name: AuditName, subject: AuditSubject, depends: Mapping[str, str]) -> AuditResult:
    context = subject.context
    context.reporter.stage(f"Audit: {name.replace('_', ' ')}")
    measure = AUDITS[name].measure
    settings = context.recipe.audit.model_dump(mode="json", exclude={"tamper": {"gradient_checkpointing"}})
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
        work=lambda _, scratch: measure(subject, scratch).save(scratch),
        load=AuditResult.load,
    )
