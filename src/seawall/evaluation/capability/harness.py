"""Runs tasks of lm-evaluation-harness; the only module of an evaluation that imports it.

Written for lm-eval 0.4.13 (Gao et al., EleutherAI, MIT licence).
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seawall.config.capability import CapabilityConfig, CapabilityTask, HarnessTask
from seawall.data.templating import self_contained_template
from seawall.errors import ConfigError
from seawall.evaluation.capability.rows import LocalTask, local_rows, template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOADING = (OSError, ValueError, KeyError, RuntimeError, ImportError)
"""Errors of the harness where data cannot be loaded: no network, no such dataset, a missing package."""


@dataclass(frozen=True, slots=True)
class HarnessLog:
    """The harness's log of one task, or of the tasks of a group.

    Attributes:
        samples: task -> one record per question and filter, as `log_samples` writes it.
        reported: task -> the harness's own results (`acc,none` -> 0.5).
        higher_is_better: task -> metric -> whether higher is better.
    """

    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    reported: Mapping[str, Mapping[str, Any]]
    higher_is_better: Mapping[str, Mapping[str, bool]]


def require_harness(tasks: Sequence[CapabilityTask]) -> None:
    """Checks, before a long run, that the harness is installed and knows the tasks.

    Raises:
        ConfigError: the harness is not installed, or does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "eval.capability needs lm-evaluation-harness, which is not installed",
            got="no package lm_eval",
            remedy="pip install 'seawall[capability]', or leave eval.capability out",
        )
    names = [task.name for task in tasks if isinstance(task, HarnessTask)]
    for name in names:
        known_tasks: list[str] = _manager(defaults=True).all_tasks
        if name not in known_tasks:
            close = get_close_matches(name, known_tasks, n=1)
            raise ConfigError(
                "eval.capability.tasks names a task that lm-evaluation-harness does not know",
                got=name,
                expected=f"perhaps {close[0]}" if close else None,
                remedy="`lm-eval ls tasks` lists all tasks; a local file needs `kind: choice` or `kind: answer`",
            )


def run_task(
    task: CapabilityTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CapabilityConfig,
    *,
    seed: int,
) -> HarnessLog:
    """Runs one task on a loaded model. Model, tokenizer and random states are left unchanged.

    Raises:
        ConfigError: the harness cannot load the task.
        DataError: a row of a local file is invalid.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _silence_harness(), _seeded(seed):
        loaded = _load(task, config)
        for harness_task in loaded["tasks"].values():
            _prepare(harness_task, config.num_fewshot, seed)
        was_training = model.training
        words = copy.deepcopy(tokenizer)
        if config.chat_template:
            words.chat_template = self_contained_template(tokenizer)
        wrapped = HFLM(pretrained=model, tokenizer=words, batch_size=config.batch_size)
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(wrapped, kind, partial(getattr(wrapped, kind), disable_tqdm=True))
        try:
            results = evaluate(
                lm=wrapped,
                task_dict=loaded,
                limit=config.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=config.chat_template,
                fewshot_as_multiturn=config.chat_template,
            )
        finally:
            model.train(was_training)
    return HarnessLog(results["samples"], results["results"], results["higher_is_better"])


def _prepare(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Sets the number of worked examples like the harness's command line: a task with 0 examples keeps 0.

    Raises:
        ConfigError: the task runs code that the model writes, or has inputs other than text.
    """
    runs_code = bool(task.get_config("unsafe_code"))
    if runs_code or task.get_config("doc_to_image") or task.get_config("doc_to_audio"):
        raise ConfigError(
            f"eval.capability: the task {task.task_name} is not supported",
            got="a task that runs the model's code" if runs_code else "a task with images or sound",
            expected="a task that reads and writes text",
            remedy="remove the task from eval.capability.tasks",
        )
    own_shots = task.get_config("num_fewshot")
    shots = own_shots if num_fewshot is None or own_shots == 0 else num_fewshot
    task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=seed)


@cache
def _manager(*, defaults: bool) -> Any:
    """The harness's task index; reading its default tasks takes about 20 seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults)


def _load(task: CapabilityTask, config: CapabilityConfig) -> Any:
    """The dictionary of harness tasks to evaluate."""
    if isinstance(task, LocalTask):
        return _manager(defaults=False).load([_local(task, config)])
    try:
        return _manager(defaults=True).load([task.name])
    except _LOADING as error:
        raise ConfigError(
            f"eval.capability: lm-evaluation-harness cannot load the task {task.name}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="check the network, since named tasks load data from the Hub; or use a local file",
        ) from error


def _local(task: LocalTask, config: CapabilityConfig) -> dict[str, Any]:
    from datasets import Dataset

    splits = {"test": local_rows(task, task.path, at_most=config.limit)}
    if task.shots is not None:
        splits["shots"] = local_rows(task, task.shots)
        if (config.num_fewshot or 0) > len(splits["shots"]):
            raise ConfigError(
                f"eval.capability.num_fewshot exceeds the number of examples in {task.shots}",
                got=config.num_fewshot,
                expected=f"at most {len(splits['shots'])}",
            )
    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    return {**template(task), "custom_dataset": lambda **_: data}


@contextmanager
def _silence_harness() -> Iterator[None]:
    """Hides the harness's log messages below errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds all random generators inside, and restores their states, so that a later repair does not depend on them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
