"""The section `landscape` of a recipe, and what is wrong in it."""

from __future__ import annotations

import pytest

from seawall.config import Recipe, load_recipe
from seawall.errors import ConfigError


def test_the_defaults_reach_the_base_and_beyond() -> None:
    found = Recipe().landscape
    assert found.base is None
    assert {-1.0, 0.0, 1.0} <= set(found.amounts)
    assert set(found.plane_amounts) <= set(found.amounts)
    assert load_recipe(None, ["landscape.plane_amounts=[]"]).landscape.plane_amounts == ()


def test_the_recipes_seed_is_its_seed_unless_it_names_one() -> None:
    assert load_recipe(None, ["seed=7"]).landscape.seed == 7
    assert load_recipe(None, ["seed=7", "landscape.seed=3"]).landscape.seed == 3


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        (
            ["landscape.amounts=[0.5, 1.0]"],
            r"landscape\.amounts is wrong; got .*; expected ascending amounts .* 0",
        ),
        (["landscape.amounts=[1.0, 0.0]"], r"landscape\.amounts is wrong; got .*; expected ascending amounts"),
        (["landscape.amounts=[0.0]"], r"landscape\.amounts is wrong; got .*; expected two or more"),
        (["landscape.amounts=[0.0, .inf]"], r"landscape\.amounts.* is wrong; got inf"),
        (["landscape.plane_amounts=[0.0]"], r"landscape\.plane_amounts is wrong; .* or an empty list"),
        (["landscape.threshold=1.0"], r"landscape\.threshold is wrong; got 1\.0"),
        (["landscape.test_prompts=0"], r"landscape\.test_prompts is wrong; got 0"),
        (["landscape.random_directions=-1"], r"landscape\.random_directions is wrong; got -1"),
        (["landscape.tuned.id=a", "landscape.adapter=b"], r"landscape is wrong; .*expected tuned or adapter, not both"),
        (["landscape.tuned=a"], r"landscape\.tuned is wrong; got 'a'"),
        (["landscape.amount=[0.0]"], r"landscape.*amount.*amounts"),
    ],
)
def test_what_is_wrong_is_one_line(changes: list[str], saying: str) -> None:
    with pytest.raises(ConfigError, match=saying) as caught:
        load_recipe(None, changes)
    assert "\n" not in str(caught.value)
