"""The rates of an evaluation as a file for a model's repository on the Hub: `.eval_results/seawall.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seawall.errors import ArtifactError, ConfigError, RunFolderError
from seawall.evaluation.pooled import with_pooled
from seawall.evaluation.rates import group_rates
from seawall.formats.evaluations import Evaluated, read_evaluations
from seawall.report.hub_results import EVAL_RESULTS, Benchmark, named_benchmark, render_hub_results
from seawall.runs.files import storage_errors, write_text


@dataclass(frozen=True, slots=True)
class WrittenResults:
    """The written file, its task ids, and the groups without an entry."""

    path: Path
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]


def write_hub_results(
    path: Path, output: Path, *, dataset: str | None = None, revision: str | None = None, source: str | None = None
) -> WrittenResults:
    """Writes the rates of the repaired model, or of a `seawall eval`, for the Hub; sends nothing.

    Args:
        path: a finished run, or a folder of `seawall eval`.
        output: folder of the model's repository; made if missing.
        dataset: benchmark dataset of every entry, OWNER/NAME; None takes the Hub datasets that the prompts came from.
        revision: its commit.
        source: address of the report.

    Raises:
        ConfigError: no dataset, none that can be one, or a wrong revision or address.
        RunFolderError: no finished evaluation of the model that is handed over.
        ArtifactError: a file is damaged or was changed, the output exists, or is in the run's folder.
    """
    benchmark = _benchmark(dataset, revision)
    if source is not None and not source.startswith(("https://", "http://")):
        raise ConfigError("--source is wrong", got=source, expected="an address that begins with https://")
    target = _target(path, output)
    evaluated = _handed_over(path)
    rates = group_rates(with_pooled(evaluated.samples))
    stage = f"eval-{evaluated.name}" if evaluated.name == "after" else evaluated.name
    results = render_hub_results(
        rates, evaluated.recipe, evaluated.manifest, stage=stage, benchmark=benchmark, source=source
    )
    if not results.tasks:
        raise ConfigError(
            f"no prompts of {path} came from a dataset of the Hub",
            expected="the id of a benchmark dataset, under which the Hub files an evaluation",
            remedy="--dataset OWNER/NAME",
        )
    with storage_errors(output):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, results.text)
    return WrittenResults(target, results.tasks, results.left_out)


def _benchmark(dataset: str | None, revision: str | None) -> Benchmark | None:
    if dataset is None:
        if revision is not None:
            raise ConfigError("--revision needs --dataset", got=revision, remedy="name the dataset that it belongs to")
        return None
    try:
        return named_benchmark(dataset, revision)
    except ValueError as error:
        got = dataset if revision is None else f"{dataset}, revision {revision}"
        raise ConfigError("the benchmark dataset is wrong", got=got, expected=str(error)) from error


def _target(path: Path, output: Path) -> Path:
    """The file to write.

    Raises:
        ArtifactError: it exists, or is in the run's folder, whose files are hashed.
    """
    target = output / EVAL_RESULTS
    if target.exists() or (output.exists() and not output.is_dir()):
        got = "a file of that name" if target.exists() else f"a file {output}"
        raise ArtifactError(f"{target} cannot be written", got=got, remedy="name another folder with -o")
    if target.resolve().is_relative_to(path.resolve()):
        raise ArtifactError(
            f"{target} cannot be written",
            got=f"a folder in the run {path}, whose files are hashed",
            remedy="name another folder with -o, such as a clone of the model's repository",
        )
    return target


def _handed_over(path: Path) -> Evaluated:
    """The evaluation of the repaired model, or the only one."""
    evaluations = read_evaluations(path)
    for evaluated in evaluations:
        if evaluated.name in ("after", "eval"):
            return evaluated
    raise RunFolderError(
        f"{path} holds no evaluation of the repaired model",
        got="an evaluation before the repair alone",
        remedy="finish the run with `seawall run`, with the same recipe and --output",
    )
