"""Who says whether a reply refused or complied. To add a judge: a file, a line here, a variant in `config/eval.py`."""

from __future__ import annotations

from collections.abc import Callable

from seawall.config.eval import JudgeConfig
from seawall.data.types import Judge
from seawall.evaluation.judges.keyword import KeywordJudge

JUDGES: dict[str, Callable[[JudgeConfig], Judge]] = {
    "keyword": lambda config: KeywordJudge(),
}
"""Every judge by its `kind` in recipes."""


def make_judge(config: JudgeConfig) -> Judge:
    """The judge that a recipe asks for."""
    return JUDGES[config.kind](config)
