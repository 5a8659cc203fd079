"""A row of a batch is the row alone, or rows are decoded one at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedModel

from dependent_rows import DEPENDENT, dependent
from families import FAMILIES, VOCABULARY, tiny, tiny_tokenizer
from seawall.models import greedy
from seawall.models.decoding import greedy_notice
from seawall.models.generate import Decoding, decode_batch
from seawall.models.greedy import batching_notice, rows_are_independent
from seawall.shell.model import measurement_notices


def prompts_of(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(40, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]


@pytest.mark.parametrize("family", DEPENDENT)
def test_rows_that_depend_on_their_batch_are_decoded_alone(family: str) -> None:
    model = dependent(family)
    assert not rows_are_independent(model, 8)
    notice = batching_notice(model, 8)
    assert notice is not None
    assert "one prompt at a time" in notice
    prompts, decoding = prompts_of(140, 6, 6), Decoding(6, frozenset(range(2, 40)), 0)
    alone = [decode_batch(model, [prompt], decoding)[0] for prompt in prompts]
    assert decode_batch(model, prompts, decoding) == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_rounding_is_no_dependence(family: str, dtype: torch.dtype) -> None:
    model = tiny(family).to(dtype)
    assert rows_are_independent(model, 12)
    assert batching_notice(model, 12) is None


def test_a_model_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mixtral").train()
    calls: list[int] = []
    check = greedy._same_together

    def counted(checked: PreTrainedModel, tokens: int) -> bool:
        calls.append(tokens)
        return check(checked, tokens)

    monkeypatch.setattr(greedy, "_same_together", counted)
    for tokens in (4, 4, 2, 8, 200, 64):
        assert rows_are_independent(model, tokens)
    assert calls == [4, 8, 64]
    assert model.training


def test_a_model_without_a_cache_is_not_checked() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4))
    assert batching_notice(model) is None


def test_settings_that_change_the_likeliest_tokens_are_said() -> None:
    model = tiny("llama")
    config = GenerationConfig(temperature=0.7, do_sample=True, num_beams=1, min_length=0, repetition_penalty=1.0)
    model.generation_config = config
    assert greedy_notice(model) is None
    config.repetition_penalty, config.suppress_tokens = 1.05, [7]
    notice = greedy_notice(model)
    assert notice is not None
    assert "repetition_penalty=1.05, suppress_tokens=[7]" in notice
    assert notice in measurement_notices(model, tiny_tokenizer(), 8)
