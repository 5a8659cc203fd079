"""The licence that a checkpoint's model card states."""

from __future__ import annotations

from pathlib import Path

import pytest

from seawall.models.files.hub import stated_licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n\nA model.", "apache-2.0"),
        ("---\ntags: [a]\n---\n\nA model.", None),
        ("---\nlicense:\n  - mit\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\njust a line\n---\n", None),
        ("A model without front matter.", None),
    ],
)
def test_a_licence_is_what_the_front_matter_says_and_nothing_else(
    tmp_path: Path, card: str, licence: str | None
) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert stated_licence(tmp_path) == licence


def test_no_card_no_licence(tmp_path: Path) -> None:
    assert stated_licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert stated_licence(tmp_path) is None
