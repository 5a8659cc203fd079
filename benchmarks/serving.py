"""Tokens per second of the engines beside local weights, which generate the same greedy replies.

    SEAWALL_VLLM=vllm-env/bin/vllm python benchmarks/serving.py [--model lab] [--prompts 48] [--tokens 32]
        [--experts eager] [--cache-tokens 2048]

One after the other, on the prompts of the package; loading, starting and the probes are left out. `processor` is the
processor time of this process, which other work on the machine changes less; vLLM computes in processes of its own.
`equal` is the number of replies equal to our loop's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from seawall.config.data import BuiltinSource
from seawall.config.engine import ContinuousEngine, TransformersEngine, VllmEngine
from seawall.config.eval import EngineConfig
from seawall.config.model import ModelConfig
from seawall.data.sources import load_benign
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.evaluation.engines.decoders import Decoders, EngineDecoder
from seawall.models.decoding import Decoding, Loaded, TokenIds, decoding_for
from seawall.models.files.fingerprint import WeightDigests
from seawall.shell.engines import prepare
from seawall.shell.model import open_checkpoint

Rows = list[TokenIds]
ENGINES: dict[str, EngineConfig] = {
    "transformers": TransformersEngine(),
    "continuous": ContinuousEngine(),
    "vllm": VllmEngine(),
}


def replies(decoder: EngineDecoder, loaded: Loaded, prompts: Rows, decoding: Decoding) -> Rows:
    """The replies in the order of the prompts."""
    results: dict[int, TokenIds] = {}
    for positions, rows in decoder(loaded, prompts, decoding, batch_size=48):
        results.update(zip(positions, rows, strict=True))
    return [results[index] for index in range(len(prompts))]


def measure(name: str, decoder: EngineDecoder, loaded: Loaded, prompts: Rows, tokens: int) -> Rows:
    """Prints tokens per second of an engine."""
    decoding = decoding_for(*loaded, tokens)
    replies(decoder, loaded, prompts[:1], decoding_for(*loaded, 1))
    begun, processor = time.monotonic(), time.process_time()
    rows = replies(decoder, loaded, prompts, decoding)
    seconds, processor = time.monotonic() - begun, time.process_time() - processor
    count = sum(map(len, rows))
    rate = f"{count / seconds:.1f} per second"
    print(f"{name}: {count} tokens in {seconds:.1f} s, {rate}, {processor:.1f} s of processor", end="", flush=True)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--experts", help="model.experts_implementation, such as eager; default: transformers' own")
    parser.add_argument("--cache-tokens", type=int, default=ContinuousEngine().cache_tokens, help="of continuous")
    options = parser.parse_args(words)
    engines = {**ENGINES, "continuous": ContinuousEngine(cache_tokens=options.cache_tokens)}
    config = ModelConfig(id=options.model, dtype="float32", experts_implementation=options.experts)
    checkpoint = open_checkpoint(config)
    loaded = model, tokenizer = checkpoint.load()
    digests = WeightDigests(model)
    texts = [prompt.text for prompt in load_benign(BuiltinSource())][: options.prompts]
    prompts = [tuple(encode_prompt(tokenizer, user(text))) for text in texts]
    print(f"{options.model}: {len(prompts)} prompts, {torch.get_num_threads()} threads")
    reference: Rows | None = None
    with TemporaryDirectory() as scratch:
        decoders = Decoders(Path(scratch), print)
        try:
            for name in options.engines:
                decoder = decoders.of(engines[name])
                prepare(decoder, loaded, digests, checkpoint.folder)
                rows = measure(name, decoder, loaded, prompts, options.tokens)
                reference = reference or rows
                print(f", {sum(map(tuple.__eq__, rows, reference))} of {len(rows)} replies equal", flush=True)
        finally:
            decoders.close()


if __name__ == "__main__":
    main()
