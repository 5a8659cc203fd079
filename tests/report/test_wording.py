"""Numbers without a sign where they round to zero; texts without the folders of a machine."""

from __future__ import annotations

import pytest

from seawall.config.judge import JudgeConfig
from seawall.config.problems import variants
from seawall.report.claims import _LIMITS
from seawall.report.wording import number, percent, percent_range, signed, without_folders


@pytest.mark.parametrize("value", [-0.0, -0.0004, 0.0])
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    assert percent(value) == "0.0%"
    assert percent_range(value, value) == "0.0–0.0%"
    assert signed(value) == "0.0"
    assert percent(-0.05) == "\u22125.0%"
    assert number(-0.0014) == "\u22120.001"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("/home/jane/models/moe", "…/moe"),
        ("/home/Jane Doe/models/a model", "…/a model"),
        ("C:\\Users\\jane\\moe", "…/moe"),
        ("seawall run /home/me/r.yaml -o /srv/out/", "seawall run …/r.yaml -o …/out"),
        ("see /srv/a/b.json, and more", "see …/b.json, and more"),
        ("org/Model-7B", "org/Model-7B"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("tune/anchor and 1/2/3", "tune/anchor and 1/2/3"),
        ("sha256:ab/cd", "sha256:ab/cd"),
    ],
)
def test_absolute_paths_are_cut_to_their_names(raw: str, shown: str) -> None:
    assert without_folders(raw) == shown


def test_every_kind_of_judge_has_its_limit() -> None:
    assert set(_LIMITS) == set(variants(JudgeConfig))
