"""lm-evaluation-harness, behind one function: the only module that imports it.

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
from seawall.errors import ConfigError
from seawall.evaluation.capability.rows import LocalTask, local_rows, template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOADING = (OSError, ValueError, KeyError, RuntimeError, ImportError)
"""What the harness raises for data that cannot be loaded: no network, no such data set, a package that is missing."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What the harness did for one task, or for each task of a group.

    Attributes:
        samples: by task, one record per question and filter, as `log_samples` gives it.
        reported: by task, its own results (`acc,none` -> 0.5).
        higher_is_better: by task and metric.
    """

    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    reported: Mapping[str, Mapping[str, Any]]
    higher_is_better: Mapping[str, Mapping[str, bool]]


def require_harness(tasks: Sequence[CapabilityTask]) -> None:
    """Refuses at once what would fail after hours.

    Raises:
        ConfigError: the harness is not installed, or does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "eval.capability needs lm-evaluation-harness",
            got="no package lm_eval",
            remedy="pip install 'seawall[capability]', or leave eval.capability out",
        )
    names = [task.name for task in tasks if isinstance(task, HarnessTask)]
    for name in names:
        known: list[str] = _manager(defaults=True).all_tasks
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise ConfigError(
                "eval.capability.tasks names a task that lm-evaluation-harness does not know",
                got=name,
                expected=f"perhaps {close[0]}" if close else None,
                remedy="`lm-eval ls tasks` lists them; a local file needs `kind: choice` or `kind: answer`",
            )


def run_task(
    task: CapabilityTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CapabilityConfig,
    *,
    seed: int,
) -> Logged:
    """Puts one task to a model that is loaded already. Model, tokenizer and random states are left as they were.

    Raises:
        ConfigError: the harness cannot load the task.
        DataError: a local file is wrong.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet(), _kept_random_states(seed):
        loaded = _load(task, config)
        for one in loaded["tasks"].values():
            _prepare(one, config.num_fewshot, seed)
        was_training = model.training
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=config.batch_size)
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(wrapped, kind, partial(getattr(wrapped, kind), disable_tqdm=True))
        try:
            found = evaluate(
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
    return Logged(found["samples"], found["results"], found["higher_is_better"])


def _prepare(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Worked examples as the harness's own command line gives them: a task that says 0 keeps it.

    Raises:
        ConfigError: the task runs what the model writes, or shows it more than text.
    """
    runs_code = bool(task.get_config("unsafe_code"))
    if runs_code or task.get_config("doc_to_image") or task.get_config("doc_to_audio"):
        raise ConfigError(
            f"eval.capability: the task {task.task_name} cannot be measured here",
            got="a task that runs the model's code" if runs_code else "a task with images or sound",
            expected="one that reads and writes text",
            remedy="leave it out",
        )
    own = task.get_config("num_fewshot")
    wanted = own if num_fewshot is None or own == 0 else num_fewshot
    task.set_config(key="num_fewshot", value=wanted or 0)
    task.set_fewshot_seed(seed=seed)


@cache
def _manager(*, defaults: bool) -> Any:
    """The harness's index of tasks; reading that of its own takes it some twenty seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults)


def _load(task: CapabilityTask, config: CapabilityConfig) -> Any:
    """The harness's tasks, in the dictionary that it evaluates."""
    if isinstance(task, LocalTask):
        return _manager(defaults=False).load([_local(task, config)])
    try:
        return _manager(defaults=True).load([task.name])
    except _LOADING as error:
        raise ConfigError(
            f"eval.capability: lm-evaluation-harness cannot load the task {task.name}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="named tasks read their data from the Hub; without it use a local file (`kind: choice` or `answer`)",
        ) from error


def _local(task: LocalTask, config: CapabilityConfig) -> dict[str, Any]:
    from datasets import Dataset

    splits = {"test": local_rows(task, task.path, at_most=config.limit)}
    if task.shots is not None:
        splits["shots"] = local_rows(task, task.shots)
        if (config.num_fewshot or 0) > len(splits["shots"]):
            raise ConfigError(
                f"eval.capability.num_fewshot asks for more examples than {task.shots} holds",
                got=config.num_fewshot,
                expected=f"at most {len(splits['shots'])}",
            )
    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    return {**template(task), "custom_dataset": lambda **_: data}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness's notices off the terminal; errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _kept_random_states(seed: int) -> Iterator[None]:
    """Seeds what tasks draw from; a repair that comes after must not depend on whether capability was measured."""
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
