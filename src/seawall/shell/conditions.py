"""Whether two evaluations measured the same thing: prompts, judge, length of replies, rendering of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import group_name
from seawall.errors import ArtifactError
from seawall.evaluation.suite import asked
from seawall.shell.evaluated import FinishedEvaluation

_TRANSPORT = frozenset(
    [
        "concurrency",
        "attempts",
        "timeout",
        "backoff",
        "max_backoff",
        "key_env",
        "base_url",
        "batch_size",
        "device",
        "dtype",
    ]
)
"""Settings of a judge that say how it is reached, and change no verdict."""
_FILES = ("path", "shots")
"""Settings of a task that name files; their contents are compared."""
_NAMED = 4
"""Differing settings that a message names."""
_RENDERED = "rendered"
_SAME_RECIPE = "evaluate both models with the same recipe and the same --set"


def require_comparable(a: FinishedEvaluation, b: FinishedEvaluation, *, across_templates: bool = False) -> None:
    """Refuses two evaluations whose rates do not mean the same.

    Args:
        a, b: the evaluations.
        across_templates: compare models that render prompts differently.

    Raises:
        ArtifactError: judge, length of replies or rendering differ; a group has other prompts; no group is shared.
    """
    differing = list(_differing_settings(a, b))
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise ArtifactError(
            "the two evaluations were measured differently",
            got="; ".join(differing[:_NAMED]) + more,
            expected="the same judge and length of replies",
            remedy=_SAME_RECIPE,
        )
    if not across_templates and renderings(a, b) == "differ":
        raise ArtifactError(
            "the two models were asked differently: chat template, its options or the tokenizer differ",
            got=f"rendered prompts {_short(a.inputs[_RENDERED])} and {_short(b.inputs[_RENDERED])}",
            expected="the same rendered prompts",
            remedy="evaluate a fine-tuned model with its base's tokenizer files and model.template_options, or add "
            "--across-templates to compare each model under its own template",
        )
    _require_same_prompts(a.samples, b.samples)


def unlike(a: FinishedEvaluation, b: FinishedEvaluation) -> str:
    """Why the rates of two evaluations do not mean the same, as a sentence; empty where they do."""
    differing = list(_differing_settings(a, b))
    if renderings(a, b) == "differ":
        differing.append("the rendering of prompts (chat template, its options or tokenizer)")
    return f"Measured differently: {'; '.join(differing)}." if differing else ""


def same_capability(a: FinishedEvaluation, b: FinishedEvaluation) -> bool:
    """Whether the scores of capability were measured alike: tasks, settings, examples, and the seed of their choice."""
    sides = [_capability(evaluation) for evaluation in (a, b)]
    return sides[0] == sides[1]


def _capability(evaluation: FinishedEvaluation) -> tuple[Any, ...]:
    settings = evaluation.recipe["eval"].get("capability") or {}
    tasks = [
        {name: value for name, value in task.items() if name not in _FILES} if isinstance(task, Mapping) else task
        for task in settings.get("tasks", ())
    ]
    asked_by = {name: settings.get(name) for name in ("num_fewshot", "chat_template")}
    hashes = evaluation.inputs.get("capability", evaluation.inputs.get("capability_files"))  # the latter in runs
    return tasks, asked_by, hashes, evaluation.recipe["eval"].get("seed")


def renderings(a: FinishedEvaluation, b: FinishedEvaluation) -> str:
    """`same`, `differ`, or `unknown` for a model behind an endpoint and files of early versions."""
    if _RENDERED not in a.inputs or _RENDERED not in b.inputs:
        return "unknown"
    return "same" if a.inputs[_RENDERED] == b.inputs[_RENDERED] else "differ"


def shared_groups(a: Sequence[Sample], b: Sequence[Sample]) -> list[str]:
    """The groups of prompts in both evaluations, in the order of A."""
    later = {sample.group for sample in b}
    return [group for group in dict.fromkeys(sample.group for sample in a) if group in later]


def _differing_settings(a: FinishedEvaluation, b: FinishedEvaluation) -> Iterator[str]:
    """`eval.max_new_tokens (24 and 32)` for every setting that changes what a rate means."""
    sides = [_measuring_settings(evaluation) for evaluation in (a, b)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name, "not set") for side in sides]
        if values[0] != values[1]:
            yield f"{name} ({values[0]} and {values[1]})"


def _measuring_settings(evaluation: FinishedEvaluation) -> dict[str, Any]:
    settings = evaluation.recipe["eval"]
    return {
        "eval.max_new_tokens": settings["max_new_tokens"],
        **dict(_flat(settings["judge"], "eval.judge")),
        **dict(_flat(evaluation.inputs.get("judge_state", {}), "judge")),
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of a setting by their full names, without those of transport."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _TRANSPORT:
                yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    else:
        yield name, value


def _require_same_prompts(a: Sequence[Sample], b: Sequence[Sample]) -> None:
    groups = shared_groups(a, b)
    if not groups:
        raise ArtifactError("the two evaluations share no group of prompts", remedy=_SAME_RECIPE)
    problems = [problem for group in groups if (problem := _prompt_problem(group, a, b))]
    if problems:
        raise ArtifactError(
            "the two evaluations have different prompts",
            got="; ".join(problems),
            expected="the same prompts in every group that both have",
            remedy=f"{_SAME_RECIPE}, or leave out a group of one of them (eval.groups)",
        )


def _prompt_problem(group: str, a: Sequence[Sample], b: Sequence[Sample]) -> str:
    """`plain refusal: 3 shared of 5 and 4` where a group has other prompts; empty where all are the same."""
    sides = [{sample.id: asked(sample) for sample in side if sample.group == group} for side in (a, b)]
    if sides[0] == sides[1]:
        return ""
    contents = [Counter(side.values()) for side in sides]
    shared = (contents[0] & contents[1]).total()
    order = ", in another order" if contents[0] == contents[1] else ""
    return f"{group_name(group)}: {shared} shared of {len(sides[0])} and {len(sides[1])}{order}"


def _short(fingerprint: object) -> str:
    return str(fingerprint)[:15]
