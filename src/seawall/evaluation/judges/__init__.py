"""Who says whether a reply refused or complied. To add a judge: a file, a line here, a variant in `config/judge.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seawall.config.judge import EnsembleJudge as EnsembleConfig
from seawall.config.judge import GuardJudge, JudgeConfig
from seawall.config.judge import RubricJudge as RubricConfig
from seawall.data.types import Judge
from seawall.evaluation.judges.ensemble import EnsembleJudge
from seawall.evaluation.judges.keyword import KeywordJudge


def _guard(config: GuardJudge, folder: Path | None) -> Judge:
    from seawall.evaluation.judges.guard import open_guard  # imports transformers, which other judges do without

    return open_guard(config)


def _rubric(config: RubricConfig, folder: Path | None) -> Judge:
    from seawall.evaluation.judges.rubric import RubricJudge  # imports an HTTP client

    return RubricJudge(config, folder)


def _ensemble(config: EnsembleConfig, folder: Path | None) -> Judge:
    return EnsembleJudge(tuple(make_judge(member, folder) for member in config.judges))


JUDGES: dict[str, Callable[[Any, Path | None], Judge]] = {
    "keyword": lambda config, folder: KeywordJudge(),
    "guard": _guard,
    "rubric": _rubric,
    "ensemble": _ensemble,
}
"""Every judge by its `kind` in recipes: its settings and the folder for raw answers -> the judge."""


def make_judge(config: JudgeConfig, folder: Path | None = None) -> Judge:
    """The judge that a recipe asks for, ready to work.

    Args:
        config: which judge.
        folder: where raw answers of an endpoint are kept and looked up; made with the first one. None keeps none.

    Raises:
        SeawallError: a guard that cannot be used, a key that is not set, or kept answers that are damaged.
    """
    return JUDGES[config.kind](config, folder)
