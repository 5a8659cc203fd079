"""A served model is told from the local one by numbers that both really compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from checkpoints import write_checkpoint
from completions import Completions, serving_completions
from dense import dense
from families import NUM_EXPERTS, NUM_LAYERS, tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.evaluation.served.verdict import FLOAT32
from seawall.evaluation.served.view import Verification, verdict_lines
from seawall.jobs.verify import Server, target_config, verification_table, verify
from seawall.models.files.load import load_model
from seawall.models.files.save import save_model
from seawall.models.moe.find import find_moe
from seawall.models.reference import covering
from seawall.runs.console import PlainConsole
from seawall.runs.progress import Quiet

FAMILY = "glm4_moe"
PROMPTS = 4


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify") / "model", FAMILY)


def verified(
    folder: Path, model: PreTrainedModel, *, dtype: str = "auto", prompts: int = PROMPTS, **served: Any
) -> Verification:
    with serving_completions(Completions(model, tiny_tokenizer(), **served)) as url:
        return verify(str(folder), Server(url, seconds=60), prompts=prompts, dtype=dtype, reporter=Quiet())


def page(result: Verification) -> str:
    console = PlainConsole(width=200)
    with console.capture() as shown:
        console.print(verification_table(result))
        for line in verdict_lines(result):
            console.print(line)
    return shown.get()


@contextmanager
def altered(model: PreTrainedModel, layer: int, expert: int) -> Iterator[PreTrainedModel]:
    """Inside, one expert's output is 5 % larger."""
    slices = find_moe(model).layers[layer].parameter("down_proj").data[expert]
    before = slices.clone()
    slices *= 1.05
    try:
        yield model
    finally:
        slices.copy_(before)


def test_the_same_weights_pass_in_float32(local: Path) -> None:
    result = verified(local, tiny(FAMILY))
    assert result.passed
    assert result.comparison.precision == "float32"
    assert result.comparison.largest < FLOAT32 / 10
    assert result.comparison.equal_replies == result.comparison.probes == PROMPTS
    assert result.comparison.prompts_compared
    assert (result.experts, result.total_experts, result.unused) == (NUM_EXPERTS * NUM_LAYERS,) * 2 + ((),)
    assert "passed" in page(result)


def test_another_model_fails_and_its_first_token_is_named(local: Path) -> None:
    result = verified(local, tiny(FAMILY, seed=1))
    assert not result.passed
    first = result.comparison.first
    assert first is not None
    assert first.local != first.served
    assert repr(first.served) in page(result).replace("\\\\", "\\")


@pytest.mark.parametrize(("layer", "expert"), [(0, 3), (1, 0), (2, 7)])
def test_a_single_altered_expert_is_found_in_float32(local: Path, layer: int, expert: int) -> None:
    with altered(tiny(FAMILY), layer, expert) as model:
        assert not verified(local, model, dtype="float32").passed


def test_an_expert_that_no_probe_uses_is_named(local: Path) -> None:
    result = verified(local, tiny(FAMILY, top_k=1), prompts=1)
    assert result.total_experts == NUM_EXPERTS * NUM_LAYERS
    assert result.experts == result.total_experts - len(result.unused)


def test_dense_models_are_compared_too(tmp_path: Path) -> None:
    model = dense("qwen2")
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    result = verified(tmp_path / "model", model)
    assert result.passed
    assert (result.experts, result.total_experts) == (None, 0)
    assert "a dense model" in page(result)
    assert not verified(tmp_path / "model", dense("qwen2", seed=1)).passed


def test_equal_logits_are_called_by_their_cause(local: Path) -> None:
    model = tiny(FAMILY)
    model.get_output_embeddings().weight.data.zero_()
    result = verified(local, model)
    assert not result.passed
    assert result.comparison.constant == pytest.approx(-math.log(model.config.vocab_size), abs=1e-4)
    assert "output layer is empty" in page(result)


def test_ties_of_the_local_weights_are_no_difference(tmp_path: Path) -> None:
    """Two tokens with the same output row are equally likely, so either may be written."""
    model = dense("llama")
    rows = model.get_output_embeddings().weight.data
    rows[130:] = rows[:142].clone()
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    result = verified(tmp_path / "model", model, last_of_ties=True)
    assert result.comparison.equal_replies < PROMPTS
    assert result.passed


def soft(seed: int = 0) -> PreTrainedModel:
    """A model whose logits 16 bits change little, as trained models' are."""
    return tiny(FAMILY, seed=seed, initializer_range=0.05)


def test_a_16_bit_server_passes_with_a_note_and_fails_where_float32_is_demanded(tmp_path: Path) -> None:
    save_model(soft(), tiny_tokenizer(), tmp_path / "model")
    result = verified(tmp_path / "model", soft().to(torch.bfloat16))
    assert result.passed
    assert result.comparison.precision == "16-bit"
    assert result.comparison.largest > FLOAT32
    assert "rounding hides changes" in page(result)
    assert not verified(tmp_path / "model", soft().to(torch.bfloat16), dtype="float32").passed
    assert not verified(tmp_path / "model", tiny(FAMILY, seed=1).to(torch.bfloat16)).passed


def test_a_16_bit_server_shows_whether_it_has_the_repair(planted: Path, planted_run: Path) -> None:
    """Rounding is as large as the repair, token by token; over all tokens the repair is seen or missing."""
    shares = []
    for folder in (planted_run / "model", planted.parent / "model"):
        model = load_model(ModelConfig(id=str(folder), dtype="bfloat16"))[0]
        result = verified(planted_run, model)
        assert result.comparison.precision == "16-bit"
        assert result.comparison.repair is not None
        assert f"{result.comparison.repair:.2f}" in page(result)
        shares.append(result.comparison.repair)
    assert shares[0] > 0.8
    assert shares[1] < 0.2


def test_a_float32_server_with_an_altered_expert_does_not_pass_as_16_bit(local: Path) -> None:
    """Tokens before the first use of the expert agree to float32, which no 16-bit server does."""
    model = tiny(FAMILY)
    with altered(model, 2, 0):
        result = verified(local, model)
    assert result.comparison.precision == "float32"
    assert not result.passed


def test_servers_that_return_less(local: Path) -> None:
    result = verified(local, tiny(FAMILY), echoes=False)
    assert result.passed
    assert not result.comparison.prompts_compared
    assert "replies alone" in page(result)
    by_text = verified(local, tiny(FAMILY), echoes=False, names_tokens=False)
    assert by_text.passed
    assert by_text.comparison.tokens == result.comparison.tokens
    assert not verified(local, tiny(FAMILY, seed=1), echoes=False, names_tokens=False).passed


def test_hostile_texts_of_tokens_are_shown_and_not_obeyed(local: Path) -> None:
    result = verified(local, tiny(FAMILY, seed=1), names_tokens=False, text="\x1b[2J[bold]\u202e")
    assert not result.passed
    shown = page(result)
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("served", "says"),
    [
        ({"measures": False}, "returns no log probabilities"),
        ({"vocabulary": 200}, "smaller vocabulary"),
        ({"models": ("a", "b")}, "add --model NAME"),
        ({"models": ()}, "does not name a single model"),
    ],
)
def test_servers_that_cannot_be_compared(local: Path, served: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        verified(local, tiny(FAMILY), **served)


def test_a_silent_endpoint(local: Path) -> None:
    for name in (None, "tiny"):
        server = Server("http://127.0.0.1:9/v1", name, seconds=5)
        with pytest.raises(ConfigError, match="does not answer"):
            verify(str(local), server, prompts=1, dtype="auto", reporter=Quiet())


def test_a_run_stands_for_its_exported_checkpoint(planted_run: Path) -> None:
    assert target_config(str(planted_run), "auto").id == str(planted_run / "model")


def test_prompts_are_chosen_by_the_experts_that_they_add() -> None:
    used = [frozenset({(0, 0)}), frozenset({(0, 0), (0, 1)}), frozenset({(0, 2)}), frozenset({(0, 1)})]
    assert covering(used, 2) == [1, 2]
    assert covering(used, 3, first=[0]) == [0, 1, 2]
    assert covering(used, 9) == [1, 2, 0, 3]
