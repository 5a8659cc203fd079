"""The judges, which label replies. To add one: a file, a line here, a variant in `config/judge.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seawall.config.judge import EnsembleJudge as EnsembleConfig
from seawall.config.judge import GuardJudge, JudgeConfig
from seawall.config.judge import PluginJudge as PluginConfig
from seawall.config.judge import RubricJudge as RubricConfig
from seawall.data.plugins import PluginRecord, load_plugin
from seawall.data.types import Judge
from seawall.evaluation.judges.ensemble import EnsembleJudge
from seawall.evaluation.judges.keyword import RULES, KeywordJudge
from seawall.evaluation.judges.plugin import PluginJudge

_RUBRIC = 2
"""Version of the rubric and of how its grades are read: stages whose verdicts come from another are made anew."""


def _guard(config: GuardJudge, folder: Path | None) -> Judge:
    from seawall.evaluation.judges.guard import open_guard  # imports transformers, which other judges do without

    return open_guard(config)


def _rubric(config: RubricConfig, folder: Path | None) -> Judge:
    from seawall.evaluation.judges.rubric import RubricJudge  # imports an HTTP client

    return RubricJudge(config, folder)


def _ensemble(config: EnsembleConfig, folder: Path | None) -> Judge:
    return EnsembleJudge(tuple(make_judge(member, folder) for member in config.judges))


def _check_guard(config: GuardJudge) -> None:
    from seawall.evaluation.judges.guard import check_guard

    check_guard(config)


def _check_rubric(config: RubricConfig) -> None:
    _rubric(config, None)  # sends nothing


def _check_ensemble(config: EnsembleConfig) -> None:
    for member in config.judges:
        check_judge(member)


JUDGES: dict[str, Callable[[Any, Path | None], Judge]] = {
    "keyword": lambda config, folder: KeywordJudge(),
    "guard": _guard,
    "rubric": _rubric,
    "plugin": lambda config, folder: PluginJudge(config),
    "ensemble": _ensemble,
}
"""Judges by `kind` in recipes: (settings, folder for raw answers) -> judge."""
_CHECKS: dict[str, Callable[[Any], object]] = {
    "guard": _check_guard,
    "rubric": _check_rubric,
    "plugin": PluginJudge,
    "ensemble": _check_ensemble,
}


def check_judge(config: JudgeConfig) -> None:
    """Checks a judge's settings; loads no weights and sends nothing.

    Raises:
        SeawallError: as `make_judge`.
    """
    check = _CHECKS.get(config.kind)
    if check is not None:
        check(config)


def judge_state(config: JudgeConfig) -> Any:
    """What a judge's verdicts depend on beside its settings, as JSON: version of the rules, hashes of a guard's files,
    version and hash of a plugin.

    Raises:
        SeawallError: a guard's files cannot be found, or a plugin cannot be imported.
    """
    if isinstance(config, EnsembleConfig):
        return [judge_state(member) for member in config.judges]
    if isinstance(config, GuardJudge):
        from seawall.evaluation.judges.guard import guard_files

        return {"rules": RULES, **guard_files(config)}
    if isinstance(config, PluginConfig):
        return asdict(load_plugin("judge", config.name).record)
    return {"rules": RULES} if config.kind == "keyword" else {"rubric": _RUBRIC}


def judge_plugins(config: JudgeConfig) -> list[PluginRecord]:
    """A record per plugin of a judge.

    Raises:
        ConfigError: a plugin cannot be imported.
    """
    members = config.judges if isinstance(config, EnsembleConfig) else (config,)
    return [load_plugin("judge", member.name).record for member in members if isinstance(member, PluginConfig)]


def make_judge(config: JudgeConfig, folder: Path | None = None) -> Judge:
    """Creates the judge of a recipe.

    Args:
        config: the judge and its settings.
        folder: folder of an endpoint's saved answers, created with the first one; None saves none.

    Raises:
        SeawallError: a guard cannot be used, an API key is not set, or saved answers are damaged.
    """
    return JUDGES[config.kind](config, folder)
