"""Sharded weights: read, written and computed in step alone. The group has one process; FSDP2 gathers there too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from families import FAMILIES, tiny
from seawall.config.model import ModelConfig
from seawall.data.batching import collate
from seawall.data.templating import Encoded
from seawall.errors import ConfigError, Interrupted, SeawallError
from seawall.models.files.fingerprint import WeightDigests, model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.forward import run
from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.capture import capture
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import find_moe
from seawall.models.moe.routers import trainable_routers
from seawall.models.moe.trainable_copies import parts_of, read_slices, write_slices
from seawall.models.sharding import freeze_if_sharded, gathered, in_step, is_sharded

STACK = "model.layers.1.mlp.experts.down_proj"
IDS = torch.tensor([[5, 7, 9]])


def _load(planted: Path) -> PreTrainedModel:
    return load_model(ModelConfig(id=str(planted.parent / "model"), dtype="float32", device="cpu"))[0]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _shard(model: PreTrainedModel) -> PreTrainedModel:
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model)
    freeze_if_sharded(model)
    return model


@pytest.fixture
def sharded(planted: Path, group: None) -> PreTrainedModel:
    """The planted model, sharded."""
    return _shard(_load(planted))


def test_a_sharded_model_is_the_whole_one(sharded: PreTrainedModel, planted: Path) -> None:
    plain = _load(planted)
    assert is_sharded(sharded)
    assert not is_sharded(plain)
    with in_step(), torch.no_grad():
        assert model_fingerprint(sharded) == model_fingerprint(plain)
        torch.testing.assert_close(sharded(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in sharded.parameters())


def _gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The gradients of two experts of each layer by the logits, and of the routers by the routing."""
    moe, batch = find_moe(model), collate([Encoded([5, 7, 9, 4], [5, 7, 9, 4]), Encoded([8, 3], [8, 3])], 0)
    gradients: dict[str, torch.Tensor | None] = {}
    with in_step(), trainable_experts(moe, [(0, 3)] * moe.num_layers) as experts:
        torch.autograd.backward(run(moe, batch, keep=2).float().logsumexp(-1).sum())
        gradients |= {name: copy.grad for name, copy in experts.named_parameters()}
    with in_step(), trainable_routers(moe) as routers, capture(moe, logits=True, detach=False) as trace:
        logits = run(moe, batch, keep=1)
        losses = [scores.float().softmax(-1)[:, 0].sum() for scores in trace.logits]
        torch.autograd.backward(torch.stack(losses).sum() + 0.0 * logits.sum())
        gradients |= {name: copy.grad for name, copy in routers.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_every_family_get_the_gradients_of_whole_weights(family: str) -> None:
    expected = _gradients(tiny(family))
    gradients = _gradients(_shard(tiny(family)))
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4


def test_slices_are_written_as_into_whole_weights(sharded: PreTrainedModel, planted: Path) -> None:
    plain, slices, name = _load(planted), {STACK: (1, 4), "lm_head.weight": None}, "lm_head.weight"
    values = {STACK: torch.rand(2, *plain.get_parameter(STACK).shape[1:]), name: plain.get_parameter(name) + 1}
    with in_step(), torch.no_grad():
        digests = WeightDigests(sharded)
        before = digests.fingerprint()
        sharded(IDS)  # from here on the slices are FSDP2's own, and no whole tensor of the output layer stays
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        old, expected = (write_slices(parts_of(model, slices), values) for model in (sharded, plain))
        assert all(old[key].equal(expected[key]) for key in slices)
        assert all(tensor.equal(values[key]) for key, tensor in read_slices((sharded, None), slices).items())
        assert digests.fingerprint() == model_fingerprint(plain) != before
        torch.testing.assert_close(sharded(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-6)


def test_what_one_process_does_alone_is_refused(sharded: PreTrainedModel) -> None:
    for work in (
        lambda: sharded(IDS),
        lambda: gathered(sharded.get_parameter(STACK)),
        lambda: model_fingerprint(sharded),
    ):
        with pytest.raises(SeawallError, match="used by one process alone"):
            work()


def test_no_pass_follows_one_that_failed(sharded: PreTrainedModel) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no room")

    with in_step():
        handle = sharded.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="no room"):
            sharded(IDS)
        handle.remove()
        with pytest.raises(SeawallError, match="ended by an error"):
            sharded(IDS)


def test_errors_of_collectives_are_those_of_another_process() -> None:
    with pytest.raises(Interrupted, match="another process"), in_step():
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer")
    with pytest.raises(Interrupted), in_step():
        raise torch.distributed.DistBackendError("NCCL")
    with pytest.raises(RuntimeError, match="shapes"), in_step():
        raise RuntimeError("shapes")


def test_weights_are_sharded_in_a_launch_alone(planted: Path) -> None:
    with pytest.raises(ConfigError, match="got one process"):
        load_model(ModelConfig(id=str(planted.parent / "model"), fsdp=True))
