"""The section `gene` of a recipe, and what is wrong in it."""

from __future__ import annotations

import pytest

from seawall.config import Recipe, load_recipe
from seawall.config.load import changed_defaults
from seawall.errors import ConfigError


def test_the_recipes_seed_is_its_seed_unless_it_names_one() -> None:
    assert load_recipe(None, ["seed=7"]).gene.seed == 7
    assert load_recipe(None, ["seed=7", "gene.seed=3"]).gene.seed == 3


def test_settings_without_a_recipe_are_the_defaults_but_for_the_changes() -> None:
    assert changed_defaults([]) == Recipe()
    found = changed_defaults(["gene.graft.steps=3", "gene.graft.steps=5", "seed=2", "model.device=cpu"])
    assert (found.gene.graft.steps, found.gene.seed, found.model.device) == (5, 2, "cpu")
    assert found.data == Recipe().data


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (
            "gene.graft.coefficients=expert",
            r"gene\.graft\.coefficients is wrong; got 'expert'; expected 'layer'",
        ),
        ("gene.graft.ceiling=0", r"gene\.graft\.ceiling is wrong; got 0"),
        ("gene.graft.shots=4", r"gene\.graft\.shots is an unknown key"),
        ("gene.graft.method=sft", r"gene\.graft\.method is wrong; got 'sft'; expected 'gene', 'safety_sft'"),
        ("gene.graft={method: safelora}", r"gene\.graft is wrong; got .* expected an anchor .* with method: safelora"),
        (
            "gene.graft={method: safety_sft, coefficients: global}",
            r"gene\.graft is wrong; got .* expected coefficients: global ",
        ),
        ("gene.graft.safelora.threshold=2", r"gene\.graft\.safelora\.threshold is wrong; got 2"),
        ("gene.graft.sft_lr=0", r"gene\.graft\.sft_lr is wrong; got 0"),
        ("gene.targets=[]", r"gene\.targets is wrong"),
        ("gene.rank=0", r"gene\.rank is wrong; got 0"),
        ("gene.extract.lr=.nan", r"gene\.extract\.lr is wrong; got nan"),
        ("gene.degraded=lab", r"gene\.degraded is wrong; got 'lab'; expected a section"),
        ("gene.degrade.epoch=1", r"gene\.degrade\.epoch is an unknown key.*epochs"),
    ],
)
def test_what_is_wrong_is_one_line(change: str, saying: str) -> None:
    with pytest.raises(ConfigError, match=saying) as caught:
        load_recipe(None, [change])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=saying):
        changed_defaults([change])
