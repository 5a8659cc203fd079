"""The limits of `model.device_map: auto` by hand."""

from __future__ import annotations

from plan_shapes import SHAPES
from seawall.models.plan.placement import place
from seawall.models.plan.stages import VLLM, Moment, Stage
from seawall.models.plan.verdict import Plan

# Four layers: 1,000 bytes of weights and 600 of activations are shared; each GPU has logits of 100 by itself.
TRAINING = Moment("backward pass", {"weights": 1000, "activations": 600, "logits": 100})
DECODING = Moment("decoding", {"weights": 1000, "key-value cache": 400})
PLAN = Plan("repair", (Stage("profile", (DECODING,)), Stage("repair", (DECODING, TRAINING))), SHAPES)


def test_the_first_gpu_where_the_peak_fits_it() -> None:
    placement = place(PLAN, [1700, 10_000])
    assert (placement.device_map, placement.max_memory) == ({"": 0}, {})
    assert placement.text.startswith("placed on one GPU: by its plan repair takes")


def test_limits_leave_what_the_plan_counts_beside_the_weights() -> None:
    placement = place(PLAN, [1300, 1300])
    # (1300 - 100) / 1600 of the layers fit each: 750 of 1,000 bytes; one layer more on the first, which is kept free.
    assert placement.max_memory == {"0": 750 + 250, "1": 750}
    assert placement.device_map == "balanced"
    assert "spread over 2 GPUs" in placement.text


def test_a_gpu_with_less_room_gets_fewer_layers() -> None:
    uneven = place(PLAN, [500, 1500, 900])
    assert uneven.device_map == "sequential"
    assert uneven.max_memory == {"0": 250 + 250, "1": 875, "2": 500}


def test_without_room_for_whole_layers_there_are_no_limits() -> None:
    placement = place(PLAN, [900, 1000])
    assert (placement.device_map, placement.max_memory) == ("balanced", {})
    assert "evenly over 2 GPUs without limits" in placement.text


def test_a_vllm_server_is_on_the_first_gpu_alone() -> None:
    served = Moment("replies by vLLM", {"weights": 1000, "activations": 200, VLLM: 700})
    plan = Plan("eval", (Stage("eval", (served,)),), SHAPES)
    placement = place(plan, [1300, 1300])
    # 600 of 1,200 shared bytes beside the server, and everything on the other GPU.
    assert placement.max_memory == {"0": 500 + 250, "1": 1000}
