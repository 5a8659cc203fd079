"""Measures the capability tasks of a recipe; each task is saved as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import CapabilityScore
from seawall.config.capability import CapabilityConfig
from seawall.evaluation.capability.harness import require_harness, run_task
from seawall.evaluation.capability.records import read_records, to_records, to_scores, write_records
from seawall.evaluation.capability.rows import LocalTask, files, local_rows
from seawall.runs.files import file_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDER = "capability"

Progress = Callable[[int, int], None]
"""Called with the number of tasks done and in total."""


def check_capability(config: CapabilityConfig | None) -> None:
    """Checks the tasks before a run.

    Raises:
        ConfigError: the harness is not installed, or does not know a task.
        DataError: a local file cannot be read, or a row is invalid.
    """
    if config is None:
        return
    require_harness(config.tasks)
    for task in config.tasks:
        if isinstance(task, LocalTask):
            for path in files((task,)):
                local_rows(task, str(path))


def file_hashes(config: CapabilityConfig) -> list[str]:
    """Hashes of the local files, on which the scores depend beside the recipe."""
    return [file_hash(path) for path in files(config.tasks)]


def measure_capability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CapabilityConfig,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[CapabilityScore, ...]:
    """The score of every task and metric. Tasks with a file in `folder/capability/` are not run again.

    Args:
        model: the model; left unchanged.
        tokenizer: its tokenizer.
        config: the tasks and their settings.
        seed: seed of the harness's choice of worked examples.
        folder: the folder of the evaluation.
        progress: called after every task.

    Raises:
        ConfigError: the harness cannot load a task, or no metric of it can be paired by question.
        DataError: a row of a local file is invalid.
        ArtifactError: the file of a finished task is damaged.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    scores: list[CapabilityScore] = []
    for count, task in enumerate(config.tasks, start=1):
        path = folder / FOLDER / f"{task.label}.jsonl"
        if not path.exists():
            write_records(path, to_records(task.label, run_task(task, model, tokenizer, config, seed=seed)))
        scores += to_scores(task.label, read_records(path))
        if progress is not None:
            progress(count, len(config.tasks))
    return tuple(scores)
