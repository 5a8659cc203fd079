from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, NUM_LAYERS, TOP_K, checkpoint_activations, random_ids, tiny
from seawall.errors import UnsupportedModelError
from seawall.models.moe.capture import RoutingTrace, capture, routing_counts, routing_counts_by_row
from seawall.models.moe.find import MoELayer, find_moe

SIGMOID = {"deepseek_v3", "glm4_moe", "minimax_m2"}
BY_LOGITS = {"gpt_oss", "phimoe"}


def _choice_scores(family: str, layer: MoELayer, block: torch.nn.Module, logits_TE: Tensor) -> Tensor:
    """What the family's top-k runs over, from its documentation: scores plus a selection bias, one group of two."""
    if family in BY_LOGITS:
        return logits_TE
    scores_TE = torch.sigmoid(logits_TE) if family in SIGMOID else torch.softmax(logits_TE, dim=-1)
    tensors = [*block.named_buffers(), *block.named_parameters()]
    biases = [tensor for name, tensor in tensors if name.endswith("e_score_correction_bias")]
    for bias in biases:
        assert bias.abs().max() > 0, "the bias must matter in this test"
        scores_TE = scores_TE + bias.detach().reshape(-1)
    if family == "deepseek_v3":
        groups_T2G = scores_TE.reshape(-1, 2, layer.num_experts // 2)
        best_T = groups_T2G.topk(2, dim=-1).values.sum(-1).argmax(-1)
        keep_T2 = torch.nn.functional.one_hot(best_T, 2).bool()
        scores_TE = groups_T2G.masked_fill(~keep_T2.unsqueeze(-1), float("-inf")).reshape(logits_TE.shape)
    return scores_TE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_logits_explain_the_recorded_choice(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    ids = random_ids()
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(ids)
    for layer in moe.layers:
        indices_TK, logits_TE = trace.indices[layer.index], trace.logits[layer.index]
        assert indices_TK.shape == trace.weights[layer.index].shape == (ids.numel(), TOP_K)
        assert logits_TE.shape == (ids.numel(), NUM_EXPERTS)
        block = moe.model.get_submodule(layer.experts_name.rpartition(".")[0])
        expected_TK = _choice_scores(family, layer, block, logits_TE.float()).topk(TOP_K, dim=-1).indices
        assert torch.equal(indices_TK.sort(dim=-1).values, expected_TK.sort(dim=-1).values)


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_changes_nothing(family: str) -> None:
    moe = find_moe(tiny(family))
    ids = random_ids()
    with torch.no_grad():
        plain = moe.model(ids).logits
        with capture(moe, logits=True):
            assert torch.equal(moe.model(ids).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_counts(family: str) -> None:
    moe = find_moe(tiny(family))
    ids = random_ids(3, 9)
    lengths = [9, 4, 6]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    rows = torch.arange(3)[:, None].expand(3, 9)
    with torch.no_grad(), capture(moe) as trace:
        moe.model(torch.where(mask, ids, 0), attention_mask=mask.long())
        counts_PLE, mass_PLE = routing_counts_by_row(trace, mask.reshape(-1), rows.reshape(-1), num_rows=3)
        counts_LE, mass_LE = routing_counts(trace, mask.reshape(-1))
        for row, length in enumerate(lengths):
            moe.model(ids[row : row + 1, :length])
            alone, alone_mass = routing_counts(trace, torch.ones(length, dtype=torch.bool))
            assert torch.equal(counts_PLE[row], alone)
            torch.testing.assert_close(mass_PLE[row], alone_mass, rtol=1e-4, atol=1e-5)
    assert torch.equal(counts_LE, counts_PLE.sum(0))
    torch.testing.assert_close(mass_LE, mass_PLE.sum(0))
    assert torch.equal(counts_LE.sum(-1), torch.full((NUM_LAYERS,), float(TOP_K * sum(lengths)), dtype=torch.float64))


def test_counts_and_mass_of_a_known_routing() -> None:
    trace = RoutingTrace(
        1, 3, [torch.tensor([[0, 1], [1, 2], [1, 0]])], [torch.tensor([[0.75, 0.25], [0.5, 0.5], [1, 0]])]
    )
    counts_LE, mass_LE = routing_counts(trace, torch.tensor([True, True, False]))
    assert counts_LE.tolist() == [[1, 2, 1]]
    assert mass_LE.tolist() == [[0.75, 0.75, 0.5]]


def test_the_trace_holds_one_forward_pass() -> None:
    moe = find_moe(tiny("olmoe"))
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(random_ids(2, 5))
        moe.model(random_ids(1, 4))
    assert [len(tensor) for tensor in trace.indices + trace.weights + trace.logits] == [4] * 3 * NUM_LAYERS


def test_a_sink_streams_every_pass_and_nothing_is_kept() -> None:
    moe = find_moe(tiny("olmoe"))
    seen: list[tuple[int, int, bool]] = []

    def sink(layer: int, indices_TK: Tensor, weights_TK: Tensor, logits_TE: Tensor | None) -> None:
        seen.append((layer, len(indices_TK), logits_TE is None))

    with torch.no_grad(), capture(moe, sink=sink) as trace:
        moe.model.generate(random_ids(2, 5), attention_mask=torch.ones(2, 5), max_new_tokens=2, min_new_tokens=2)
    assert seen == [(layer, tokens, True) for tokens in (10, 2) for layer in range(NUM_LAYERS)]
    assert not trace.indices


def test_capture_ends_with_its_block_even_after_an_error() -> None:
    moe = find_moe(tiny("olmoe"))
    with pytest.raises(RuntimeError, match="stop"), capture(moe, logits=True) as trace:
        raise RuntimeError("stop")
    moe.model(random_ids())
    assert not trace.indices
    assert not any(
        vars(module)[key] for module in moe.model.modules() for key in ("_forward_hooks", "_forward_pre_hooks")
    )


def test_counts_need_a_whole_forward_pass() -> None:
    moe = find_moe(tiny("olmoe"))
    with capture(moe) as trace, pytest.raises(UnsupportedModelError, match="got the routing of 0 of 3 MoE layers"):
        routing_counts(trace, torch.ones(1))


def test_layers_out_of_order_are_an_error() -> None:
    moe = find_moe(tiny("olmoe"))
    layer = moe.layers[1]
    arguments = torch.zeros(2, 32), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2)
    with capture(moe), pytest.raises(UnsupportedModelError, match="layer 1 after 0 layers"):
        layer.experts(*arguments)


def test_weights_for_all_experts_are_refused() -> None:
    moe = find_moe(tiny("olmoe"))
    experts = moe.layers[0].experts
    arguments = torch.zeros(2, 32), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, NUM_EXPERTS)
    with capture(moe), pytest.raises(UnsupportedModelError, match=r"OlmoeExperts .*indices \(2, 2\), weights \(2, 8\)"):
        experts(*arguments)


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral"])
def test_arguments_by_name_are_understood(family: str) -> None:
    moe = find_moe(tiny(family, implementation="eager"))
    names = {"gpt_oss": ("router_indices", "routing_weights"), "mixtral": ("top_k_index", "top_k_weights")}[family]
    indices_TK, weights_TK = torch.tensor([[3, 1]]), torch.tensor([[0.5, 0.5]])
    with capture(moe) as trace:
        moe.layers[0].experts(torch.zeros(1, 32), **dict(zip(names, (indices_TK, weights_TK), strict=True)))
    assert torch.equal(trace.indices[0], indices_TK)


def _router_gradients(family: str, *, checkpointing: bool) -> dict[str, Tensor]:
    model = tiny(family)
    if checkpointing:
        checkpoint_activations(model)
    moe = find_moe(model)
    with capture(moe, logits=True, detach=False) as trace:
        model(random_ids())
    recorded = [*trace.indices]
    first = torch.stack([logits.float().log_softmax(-1)[:, 0].mean() for logits in trace.logits])
    torch.autograd.backward(first.sum())
    assert all(one is two for one, two in zip(recorded, trace.indices, strict=True))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"phimoe"}))
def test_a_loss_on_logits_reaches_the_routers_also_with_gradient_checkpointing(family: str) -> None:
    plain = _router_gradients(family, checkpointing=False)
    again = _router_gradients(family, checkpointing=True)
    for layer in find_moe(tiny(family)).layers:
        assert any(plain[name].abs().max() > 0 for name in plain if name.startswith(layer.router_name))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_backward_pass_under_gradient_checkpointing_is_not_recorded_again() -> None:
    model = tiny("olmoe")
    checkpoint_activations(model)
    moe = find_moe(model)
    passes: list[int] = []
    ids = random_ids()
    with capture(moe, sink=lambda layer, *_: passes.append(layer)):
        model(ids, labels=ids).loss.backward()
    assert passes == [0, 1, 2]


def test_probabilities_are_recorded_as_their_logarithm() -> None:
    moe = find_moe(tiny("gemma4_text"))
    given: list[Tensor] = []
    hook = moe.layers[0].router.register_forward_hook(lambda _, inputs, output: given.append(output[0]))
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(random_ids())
    hook.remove()
    torch.testing.assert_close(trace.logits[0].softmax(dim=-1), given[0])


def test_recorded_tensors_are_detached_unless_asked_for() -> None:
    moe = find_moe(tiny("olmoe"))
    with capture(moe, logits=True) as trace:
        moe.model(random_ids())
    assert not any(tensor.requires_grad for tensor in trace.weights + trace.logits)
