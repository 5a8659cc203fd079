"""Settings of the repair that exclude each other are refused, and not ignored."""

from __future__ import annotations

import pytest

from seawall.config import load_recipe
from seawall.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        (["repair.parameters=full", "repair.expert.attention_lr=1e-4"], "attention_lr=null with parameters=full"),
        (["repair.retain.per_batch=0", "repair.retain.plain_refusals=true"], "per_batch of at least 1"),
        (["repair.expert.enabled=false", "repair.router.enabled=false"], "otherwise nothing is trained"),
        (["repair.retain.twins=-1"], r"repair\.retain\.twins"),
        (["repair.objective=refuse"], r"repair\.objective is wrong; got 'refuse'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes: list[str], saying: str) -> None:
    with pytest.raises(ConfigError, match=saying):
        load_recipe(None, changes)
