"""An engine beside local weights is believed after its probes alone, and its replies are those of our loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from checkpoints import write_checkpoint
from dense import dense
from families import tiny, tiny_tokenizer
from seawall.config.engine import ContinuousEngine, EndpointEngine, TransformersEngine, VllmEngine
from seawall.config.eval import EngineConfig
from seawall.config.model import ModelConfig
from seawall.config.problems import variants
from seawall.config.recipe import Recipe
from seawall.data.types import user
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.evaluation.engines.continuous import CheckedContinuous
from seawall.evaluation.engines.decoders import DECODERS, Decoders
from seawall.evaluation.engines.vllm import StoredWeights, VllmDecoder
from seawall.models.continuous import ContinuousDecoder, ContinuousReply
from seawall.models.decoding import Completion, Decoder
from seawall.models.files.fingerprint import WeightDigests
from seawall.models.files.load import load_model
from seawall.models.generate import generate, our_loop
from seawall.shell.engines import check_engines, require_loadable

TOKENIZER = tiny_tokenizer()
TESTS = Path(__file__).parents[1]
PROMPTS = [user(f"Paint fence number {index}" + " again" * (index % 3)) for index in range(6)]


def replies(model: PreTrainedModel, decoder: Decoder = our_loop) -> list[Completion]:
    return generate(model, TOKENIZER, PROMPTS, max_new_tokens=8, batch_size=4, decoder=decoder)


def test_every_engine_but_an_endpoint_has_a_decoder() -> None:
    assert set(DECODERS) == set(variants(EngineConfig)) - {"endpoint"}


def test_equal_settings_share_a_decoder(tmp_path: Path) -> None:
    decoders = Decoders(tmp_path, print)
    first = decoders.of(ContinuousEngine())
    assert decoders.of(ContinuousEngine()) is first
    assert decoders.of(TransformersEngine()) is not first
    with pytest.raises(ConfigError, match=r"got engine\.kind=endpoint"):
        decoders.of(EndpointEngine(base_url="http://127.0.0.1:9/v1", model="m"))


@pytest.mark.parametrize("model", [tiny("olmoe"), dense("llama")], ids=["moe", "dense"])
def test_checked_continuous_writes_the_same(model: PreTrainedModel) -> None:
    model.train()
    decoder = CheckedContinuous(ContinuousEngine())
    assert replies(model, decoder) == replies(model)
    assert model.training


def test_continuous_refuses_a_model_at_once() -> None:
    with pytest.raises(UnsupportedModelError, match="DeepseekV3ForCausalLM"):
        CheckedContinuous(ContinuousEngine()).prepare((tiny("deepseek_v3"), TOKENIZER))


@pytest.mark.parametrize("change", ["tokens", "log_probabilities"])
def test_an_engine_that_computes_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    honest = ContinuousDecoder.measured

    def measured(*arguments: object) -> list[ContinuousReply]:
        rows = honest(*arguments)  # type: ignore[arg-type]
        if change == "tokens":
            other = replace(rows[1], tokens=(*rows[1].tokens[:2], 77, *rows[1].tokens[3:]))
        else:
            other = replace(rows[1], log_probabilities=tuple(value - 0.01 for value in rows[1].log_probabilities))
        return [rows[0], other, *rows[2:]]

    monkeypatch.setattr(ContinuousDecoder, "measured", measured)
    decoder = CheckedContinuous(ContinuousEngine())
    with pytest.raises(ConfigError, match="engine continuous are not those of the local weights; got") as error:
        replies(tiny("olmoe"), decoder)
    expected = "token 3 of the reply to probe 2" if change == "tokens" else "differ by 0.01 nats"
    assert expected in str(error.value)


@contextmanager
def vllm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[VllmDecoder, list[str]]]:
    program = folder / "vllm"
    paths = f"{TESTS.parent / 'src'}:{TESTS}"
    words = f'exec env PYTHONPATH={paths} WORKER_FILE={folder}/worker {sys.executable} {TESTS}/vllm_program.py "$@"'
    program.write_text(f"#!/bin/sh\n{words}\n")
    program.chmod(0o755)
    monkeypatch.setenv("SEAWALL_VLLM", str(program))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    lines: list[str] = []
    decoder = VllmDecoder(VllmEngine(timeout=500), folder, lines.append)
    try:
        yield decoder, lines
    finally:
        decoder.close()


def test_vllm_serves_the_weights_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = write_checkpoint(tmp_path / "model", "olmoe")
    model, _ = load_model(ModelConfig(id=str(stored)))
    digests = WeightDigests(model)
    with vllm(tmp_path, monkeypatch) as (decoder, lines):
        decoder.register(model, digests, StoredWeights(stored, digests.fingerprint()))
        assert replies(model, decoder) == replies(model)
        assert replies(model, decoder) == replies(model)
        assert len(lines) == 1
        assert lines[0].endswith(f"on {stored.resolve()}")
        with torch.no_grad():
            model.lm_head.weight.copy_(model.lm_head.weight.roll(1, 0))
        changed = replies(model)
        assert replies(model, decoder) == changed
        assert len(lines) == 2
        assert [path.name[:9] for path in tmp_path.glob(".serving-*")] == [".serving-"]
    assert list(tmp_path.glob(".serving-*")) == []


def test_vllm_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = write_checkpoint(tmp_path / "model", "olmoe")
    model = tiny("olmoe", seed=5)
    digests = WeightDigests(model)
    with vllm(tmp_path, monkeypatch) as (decoder, _):
        decoder.register(model, digests, StoredWeights(stored, digests.fingerprint()))
        with pytest.raises(ConfigError, match="engine vllm are not those of the local weights"):
            replies(model, decoder)


def test_no_vllm_is_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_VLLM", "no-such-vllm")
    with pytest.raises(ConfigError, match="no program no-such-vllm"):
        check_engines(Recipe(engine=VllmEngine()))
    check_engines(Recipe(engine=ContinuousEngine()))


@pytest.mark.parametrize("key", ["engine", "eval"])
def test_an_endpoint_cannot_be_changed(key: str) -> None:
    engine = EndpointEngine(base_url="http://127.0.0.1:9/v1", model="m")
    recipe = Recipe.model_validate({"engine": engine} if key == "engine" else {"eval": {"engine": engine}})
    with pytest.raises(ConfigError, match=r"cannot be repaired; got (eval\.)?engine\.kind=endpoint"):
        require_loadable(recipe, "a model behind an endpoint cannot be repaired")


def test_the_engine_of_evaluations_is_the_recipes_unless_set() -> None:
    recipe = Recipe.model_validate({"engine": {"kind": "continuous", "cache_tokens": 512}})
    assert recipe.eval.engine == ContinuousEngine(cache_tokens=512)
    both = Recipe.model_validate({"engine": {"kind": "vllm"}, "eval": {"engine": {"kind": "transformers"}}})
    assert (both.engine, both.eval.engine) == (VllmEngine(), TransformersEngine())
    assert Recipe.model_validate(both.model_dump(mode="json")) == both
