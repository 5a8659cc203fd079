"""Capability of a model: every task of a recipe, each kept on disk as soon as it is done."""

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
"""Told how many tasks are done, and of how many."""


def check_capability(config: CapabilityConfig | None) -> None:
    """Everything that can be wrong with the tasks, before anything else is done.

    Raises:
        ConfigError: the harness is missing, or does not know a task.
        DataError: a local file cannot be read, or a row is wrong.
    """
    if config is None:
        return
    require_harness(config.tasks)
    for task in config.tasks:
        if isinstance(task, LocalTask):
            for path in files((task,)):
                local_rows(task, str(path))


def file_hashes(config: CapabilityConfig) -> list[str]:
    """What the scores depend on beside the recipe: the local files' contents."""
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
    """The score of every task and metric. Tasks whose file is in `folder/capability/` already are not asked again.

    Args:
        model: the model; left as it was.
        tokenizer: its tokenizer.
        config: tasks and how they are put.
        seed: of the worked examples that the harness draws.
        folder: of the evaluation.
        progress: called after every task.

    Raises:
        ConfigError: the harness cannot load a task, or nothing of it can be compared.
        DataError: a local file is wrong.
        ArtifactError: the file of a task that was done is damaged.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    found: list[CapabilityScore] = []
    for done, task in enumerate(config.tasks, start=1):
        path = folder / FOLDER / f"{task.label}.jsonl"
        if not path.exists():
            write_records(path, to_records(task.label, run_task(task, model, tokenizer, config, seed=seed)))
        found += to_scores(task.label, read_records(path))
        if progress is not None:
            progress(done, len(config.tasks))
    return tuple(found)
