"""Repair, evaluation, audits, steering, landscape and fine-tuning; each works in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.api.common import (
    PathText,
    Progress,
    RecipeOrPath,
    Result,
    changes_of,
    read_recipe,
    reporter_of,
    run_folder,
    run_of,
)
from seawall.errors import ConfigError
from seawall.runs.folder import RunFolder


def run(
    recipe: RecipeOrPath = None,
    *,
    output: PathText | None = None,
    until: str = "report",
    progress: Progress = False,
    **settings: Any,
) -> Result:
    """Finds, repairs and verifies the safety-critical experts of a model (RASA, arXiv 2602.04448).

    Args:
        recipe: model, prompts and settings.
        output: the run folder; None takes the recipe's, else `runs/NAME`.
        until: the last stage: `profile`, `select`, `repair`, `evaluate` or `report`.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.run import STAGES, run_recipe

    if until not in STAGES:
        raise ConfigError("there is no such stage", got=f"until={until!r}", expected=", ".join(STAGES))
    resolved, text = read_recipe(recipe, settings)
    with reporter_of(progress) as reporter:
        outcome = run_recipe(resolved, run_folder(resolved, output), text=text, reporter=reporter, until=until)
    return Result(outcome.run.path, outcome.summary or {}, outcome.run.report if outcome.summary else None)


def evaluate(
    recipe: RecipeOrPath = None,
    *,
    output: PathText | None = None,
    delta: PathText | None = None,
    adapter: PathText | None = None,
    progress: Progress = False,
    **settings: Any,
) -> Result:
    """Evaluates one model, dense or not: attacks, plain refusal, over-refusal, compliance, loss on gold answers.

    Args:
        recipe: model, prompts and settings.
        output: the run folder; None takes `runs/NAME-eval`.
        delta: a `delta` folder of a run, to add to the model.
        adapter: a folder with a PEFT LoRA adapter, to merge into the model.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.evaluate import EvalTarget, evaluate_target

    resolved, text = read_recipe(recipe, settings)
    target = EvalTarget(*(None if folder is None else Path(folder) for folder in (delta, adapter)))
    folder = Path(output or f"runs/{resolved.name}-eval")
    with reporter_of(progress) as reporter:
        evaluation = evaluate_target(resolved, target, folder, text=text, reporter=reporter)
    return Result(folder, evaluation.summary)


def audit(
    run: PathText | None = None,
    *,
    recipe: RecipeOrPath = None,
    output: PathText | None = None,
    only: Sequence[str] = (),
    progress: Progress = False,
    **settings: Any,
) -> Result:
    """Audits a finished run, or the model of a recipe without a repair.

    Args:
        run: the folder of a finished run; None audits the recipe's model.
        recipe: model, prompts and settings, without a run.
        output: the folder for a model's audits.
        only: names of audits; empty for all that are possible.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section; of a run only the section `audit`.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.audit import audit_model, audit_run, document, parse_names

    names = parse_names(",".join(only) if only else None)
    with reporter_of(progress) as reporter:
        if run is not None:
            folder = Path(run)
            results = audit_run(folder, only=names, changes=changes_of(settings), reporter=reporter)
        else:
            resolved, text = read_recipe(recipe, settings)
            folder = run_folder(resolved, output)
            results = audit_model(resolved, folder, text=text, only=names, reporter=reporter)
    report = RunFolder(folder).report
    return Result(folder, document(folder, results), report if report.is_file() else None)


def steer(
    recipe: RecipeOrPath = None, *, output: PathText | None = None, progress: Progress = False, **settings: Any
) -> Result:
    """Measures how far one direction, one expert or attention moves refusal (arXiv 2606.04160). Writes no model.

    Args:
        recipe: a recipe, or the folder of a run.
        output: the run folder.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section; of a run only the section `steer`.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.steer import document, steer_recipe, steer_run

    run = run_of(recipe, output)
    with reporter_of(progress) as reporter:
        if run is not None:
            steer_run(run, changes_of(settings), reporter=reporter)
            folder = run
        else:
            resolved, text = read_recipe(recipe, settings)
            folder = run_folder(resolved, output)
            steer_recipe(resolved, folder, text=text, reporter=reporter)
    pages = (RunFolder(folder).steering_report, RunFolder(folder).report)
    return Result(folder, document(folder), next((page for page in pages if page.is_file()), None))


def landscape(
    recipe: RecipeOrPath = None, *, output: PathText | None = None, progress: Progress = False, **settings: Any
) -> Result:
    """Measures the harmful rate while the weights move along alignment, a fine-tuning, or random directions.

    Args:
        recipe: a recipe, or the folder of a run.
        output: the run folder.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section; of a run only the section `landscape`.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.landscape import document, landscape_recipe, landscape_run

    run = run_of(recipe, output)
    with reporter_of(progress) as reporter:
        if run is not None:
            landscape_run(run, changes_of(settings), reporter=reporter)
            folder = run
        else:
            resolved, text = read_recipe(recipe, settings)
            folder = run_folder(resolved, output)
            landscape_recipe(resolved, folder, text=text, reporter=reporter)
    return Result(folder, document(folder), RunFolder(folder).landscape_report)


def tune(
    recipe: RecipeOrPath = None, *, output: PathText | None = None, progress: Progress = False, **settings: Any
) -> Result:
    """Fine-tunes LoRA adapters within the safety basin (AsFT, arXiv 2506.08473) and by its controls and baselines.

    Args:
        recipe: model, prompts, task and settings.
        output: the run folder.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.tune import document, tune_recipe

    resolved, text = read_recipe(recipe, settings)
    folder = run_folder(resolved, output)
    with reporter_of(progress) as reporter:
        tune_recipe(resolved, folder, text=text, reporter=reporter)
    return Result(folder, document(folder), RunFolder(folder).tuning_report)
