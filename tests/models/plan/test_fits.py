"""The verdict: whether a plan fits, and the settings with which it does."""

from __future__ import annotations

import pytest

from plan_shapes import SHAPES
from seawall.errors import ConfigError
from seawall.models.plan.rates import Rates
from seawall.models.plan.stages import Moment, Stage, Work
from seawall.models.plan.verdict import GIB, Budget, Changes, Plan, judge_plan, parse_memory

ROWS = ("8", "4", "2", "1")


def _plan(rows: int = 16, checkpointing: bool = False, devices: int = 1) -> Plan:
    activations = rows * (10 if checkpointing else 100)
    train = Moment(
        "backward pass", {"weights": 1000, "activations": activations, "logits": rows}, ("rows", "recompute")
    )
    idle = Moment("export", {"weights": 1000})
    return Plan("repair", (Stage("repair", (train, idle)), Stage("export", (idle,))), SHAPES, devices)


def _changed(changes: Changes) -> Plan:
    values = dict(changes)
    return _plan(int(values.get("rows", 16)), values.get("recompute") == "true")


def _ladder(key: str) -> tuple[str, ...]:
    return {"rows": ROWS, "recompute": ("true",)}[key]


@pytest.mark.parametrize(
    ("memory", "fits", "settings"),
    [
        (3000, True, ()),
        (2616, True, ()),
        (2615, False, ("rows=8",)),
        (1500, False, ("rows=4",)),
        (1101, False, ("rows=1",)),
        (1100, False, ("rows=8", "recompute=true")),
        (1005, False, ()),
    ],
)
def test_the_gentlest_settings_that_fit(memory: int, fits: bool, settings: tuple[str, ...]) -> None:
    verdict = judge_plan(_plan(), Budget(memory), _changed, _ladder)
    assert (verdict.fits, verdict.settings) == (fits, settings)


def test_the_verdict_in_words() -> None:
    texts = {
        name: judge_plan(_plan(), Budget(size, name="a GPU of 24GB"), _changed, _ladder).text
        for name, size in {"large": 3 * GIB, "small": 1500, "tiny": 1}.items()
    }
    assert texts["large"] == "fits a GPU of 24GB (0.0 of 3.0 GiB)"
    assert texts["small"].endswith(": set rows=4")
    assert texts["tiny"].endswith("with no setting: use more or larger devices")


def test_layers_are_shared_by_devices_but_logits_are_not() -> None:
    plan = _plan(devices=4)
    terms = plan.terms(plan.largest[1])
    assert terms == {"weights": 250, "activations": 400, "logits": 16}
    three = _plan(devices=3)  # of 4 layers, the fullest device has 2
    assert three.terms(three.largest[1])["weights"] == 500


def test_a_plan_as_a_document() -> None:
    plan = Plan(
        "eval", (Stage("eval", (Moment("decoding", {"weights": 5, "logits": 0}),), Work(generated=30)),), SHAPES
    )
    assert plan.as_document()["seconds"] is None
    timed = Plan(plan.verb, plan.stages, SHAPES, rates=Rates(10, 1, 1)).as_document()
    assert (timed["seconds"], timed["peak"], timed["terms"]) == (3.0, 5, {"weights": 5})
    assert timed["stages"] == [{"name": "eval", "peak": 5, "seconds": 3.0, "host": {}, "disk": {}}]


def test_amounts_of_memory() -> None:
    assert parse_memory("24GB") == 24 * 10**9
    assert parse_memory("22.5 GiB") == int(22.5 * 2**30)
    assert parse_memory("141gb") == 141 * 10**9
    for text in ("24", "GB", "-1GB", "24 bananas"):
        with pytest.raises(ConfigError, match="amount of memory"):
            parse_memory(text)
