"""The section `steer` of a recipe, and what is wrong in it."""

from __future__ import annotations

import pytest

from seawall.config import Recipe, load_recipe
from seawall.errors import ConfigError


def test_the_papers_numbers_are_the_defaults() -> None:
    found = Recipe().steer
    assert found.mode == "suppress"
    assert list(found.positions) == [-5, -4, -3, -2, -1]
    assert (found.train_prompts, found.validation_prompts) == (128, 32)
    assert (found.layer_coefficient, found.layer_max_kl, found.drop_last_layers) == (1.0, 0.1, 0.2)
    assert list(found.search.coefficients) == [1, 5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400]
    assert (found.search.max_kl, found.search.keep_share, found.search.keep_least) == (2.0, 0.025, 15)
    assert (found.search.judged_prompts, found.search.judged_tokens) == (25, 25)


def test_the_recipes_seed_is_its_seed_unless_it_names_one() -> None:
    assert load_recipe(None, ["seed=7"]).steer.seed == 7
    assert load_recipe(None, ["seed=7", "steer.seed=3"]).steer.seed == 3


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ("steer.mode=remove", r"steer\.mode is wrong; got 'remove'; expected 'suppress' or 'induce'"),
        ("steer.positions=[0]", r"steer\.positions\[0\]|steer\.positions\.0"),
        ("steer.positions=[-1, -2]", r"steer\.positions is wrong; got .*; expected ascending positions below 0"),
        ("steer.positions=[]", r"steer\.positions is wrong; got .*; expected ascending positions below 0"),
        ("steer.search.coefficients=[.nan]", r"steer\.search\.coefficients.* is wrong; got nan"),
        ("steer.layer_coefficient=.nan", r"steer\.layer_coefficient is wrong; got nan"),
        ("steer.layer_coefficient=-1.0", r"steer\.layer_coefficient is wrong; got -1\.0"),
        ("steer.harden.coefficients=[1.0, 0.5]", r"steer\.harden\.coefficients is wrong; .* ascending numbers above 0"),
        ("steer.system_prompt=' '", r"steer\.system_prompt is wrong; got ' '; expected"),
        ("steer.refusal_tokens=[]", r"steer\.refusal_tokens is wrong"),
        ("steer.position=[-1]", r"steer.*position.*positions"),
    ],
)
def test_what_is_wrong_is_one_line(change: str, saying: str) -> None:
    with pytest.raises(ConfigError, match=saying) as caught:
        load_recipe(None, [change])
    assert "\n" not in str(caught.value)
