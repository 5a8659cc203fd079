"""What routers do not read: the null space of their weights, and the share of choices that a change leaves."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from families import TOP_K, WIDTH, random_ids, tiny
from seawall.models.hidden.intervene import Addition, added
from seawall.models.hidden.norms import norm_scale
from seawall.models.hidden.routes import route_agreement, route_preserving
from seawall.models.moe.find import MoEModel, find_moe


def _moe(family: str) -> MoEModel:
    model = tiny(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return find_moe(model)


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gpt_oss", "qwen2_moe"])
def test_the_next_routers_read_nothing_of_what_is_preserved(family: str) -> None:
    torch.manual_seed(0)
    moe = _moe(family)
    vector_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    layer = moe.layers[1]
    preserved_D, count = route_preserving(moe, layer.decoder_layer, vector_D)
    assert count == 2  # 8 experts each, at most half of 32 dimensions
    norm = moe.model.get_decoder().layers[layer.decoder_layer].post_attention_layernorm
    weight_ED = next(parameter for parameter in layer.router.parameters() if parameter.ndim == 2)
    rows_ED = weight_ED * norm.weight
    assert (rows_ED @ preserved_D).abs().max() < 1e-4 < (rows_ED @ vector_D).abs().max()
    assert 0.3 * vector_D.norm() < preserved_D.norm() < vector_D.norm()
    torch.testing.assert_close(norm_scale(norm, torch.zeros(1, 1, WIDTH)).float(), norm.weight.detach())


def test_past_the_last_router_a_direction_stays_as_it_is() -> None:
    moe, vector_D = find_moe(tiny("mixtral")), torch.randn(WIDTH)
    preserved_D, count = route_preserving(moe, 3, vector_D)
    assert count == 0
    assert torch.equal(preserved_D, vector_D)


def test_agreement_counts_the_choices_that_stay() -> None:
    moe = find_moe(tiny("mixtral"))
    ids = random_ids()

    def run() -> Tensor:
        moe.model(ids, use_cache=False)
        return torch.ones_like(ids)

    same, count = route_agreement(moe, run, nullcontext)
    assert same == count == ids.numel() * TOP_K * moe.num_layers
    vector_D = 20 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    preserved_D, _ = route_preserving(moe, 2, vector_D)
    moved, _ = route_agreement(moe, run, lambda: added(moe.model, [Addition(2, vector_D, 1.0)]))
    preserved, _ = route_agreement(moe, run, lambda: added(moe.model, [Addition(2, preserved_D, 1.0)]))
    assert 2 / 3 * count <= moved < preserved <= count  # two of three layers lie before the change
