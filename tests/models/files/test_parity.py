from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import FAMILIES, tiny, tiny_tokenizer
from seawall.errors import ArtifactError
from seawall.models.files.parity import holds_weights
from seawall.models.files.save import save_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_checkpoint_holds_the_model_and_no_other(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    assert holds_weights(tmp_path / "model", model)
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) in {id(value) for value in model.state_dict(keep_vars=True).values()}:
            flat = tensor.detach().view(-1).view(torch.uint8)
            flat[-1] ^= 1
            with pytest.raises(ArtifactError, match="is not the model in memory"):
                holds_weights(tmp_path / "model", model)
            flat[-1] ^= 1
            break
    assert holds_weights(tmp_path / "model", model)


def test_tied_weights_are_compared_under_both_names(tmp_path: Path) -> None:
    model = tiny("olmoe", tie_word_embeddings=True)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    assert holds_weights(tmp_path / "model", model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(ArtifactError, match=r"lm_head\.weight differs"):
        holds_weights(tmp_path / "model", model)


def test_shards_are_as_large_as_asked(tmp_path: Path) -> None:
    from seawall.models.files.save import write_model

    model = tiny("olmoe")
    write_model(model, tiny_tokenizer(), tmp_path / "model", max_shard_size="100KB")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    assert holds_weights(tmp_path / "model", model)
