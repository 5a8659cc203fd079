"""Tokens per second of three ways to generate the same greedy replies: our loop, generate_batch, and a vLLM server.

    python benchmarks/serving.py --vllm vllm-env/bin/vllm [--model lab] [--prompts 48] [--tokens 32]

One after the other, on the prompts of the package, loading and starting left out. vLLM gets the prompts as token ids,
all at once. `equal` is the number of replies equal to our loop's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.data import BuiltinSource
from seawall.config.model import ModelConfig
from seawall.data.sources import load_benign
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.evaluation.served.process import SERVED_NAME, vllm_server
from seawall.models.decoding import TokenIds, decoding_for
from seawall.models.generate import greedy_batches
from seawall.shell.model import open_checkpoint

Rows = list[TokenIds]


def our_loop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Rows, tokens: int) -> Rows:
    replies: dict[int, TokenIds] = {}
    decoding = decoding_for(model, tokenizer, tokens)
    for positions, rows in greedy_batches(model, prompts, decoding, batch_size=48):
        replies.update(zip(positions, rows, strict=True))
    return [replies[index] for index in range(len(prompts))]


def continuous(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Rows, tokens: int) -> Rows:
    ends = sorted(decoding_for(model, tokenizer, tokens).eos_ids)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    # Without bounds the cache takes a share of all memory, on a CPU of that of other processes too.
    bounds = ContinuousBatchingConfig(num_blocks=2 * len(prompts), max_batch_tokens=1024)
    outputs: dict[str, Any] = model.generate_batch(
        inputs=list(map(list, prompts)), generation_config=settings, continuous_batching_config=bounds
    )
    by_prompt = {tuple(output.prompt_ids): tuple(output.generated_tokens) for output in outputs.values()}
    return [by_prompt[prompt] for prompt in prompts]


def served(url: str, prompts: Rows, tokens: int) -> Rows:
    with httpx2.Client(timeout=600.0, trust_env=False) as client:

        def reply(prompt: TokenIds) -> TokenIds:
            body = {"model": SERVED_NAME, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0}
            response = client.post(f"{url}/completions", json={**body, "return_token_ids": True})
            return tuple(response.json()["choices"][0]["token_ids"])

        with ThreadPoolExecutor(len(prompts)) as executor:
            return list(executor.map(reply, prompts))


def measure(name: str, replies: Callable[[], Rows], reference: Rows | None) -> Rows:
    """Prints tokens per second of one way."""
    begun = time.monotonic()
    rows = replies()
    seconds = time.monotonic() - begun
    tokens = sum(map(len, rows))
    equal = "" if reference is None else f", {_equal(rows, reference)} of {len(rows)} replies equal"
    print(f"{name}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} per second{equal}", flush=True)
    return rows


def _equal(rows: Rows, reference: Rows) -> int:
    return sum(a == b for a, b in zip(rows, reference, strict=True))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default=os.environ.get("SEAWALL_VLLM", "vllm"))
    parser.add_argument("--model", default="lab")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--skip-continuous", action="store_true", help="leave out generate_batch")
    options = parser.parse_args(words)
    checkpoint = open_checkpoint(ModelConfig(id=options.model, dtype="float32"))
    model, tokenizer = checkpoint.load()
    texts = [prompt.text for prompt in load_benign(BuiltinSource())][: options.prompts]
    prompts = [tuple(encode_prompt(tokenizer, user(text))) for text in texts]
    print(f"{options.model}: {len(prompts)} prompts, {torch.get_num_threads()} threads")
    reference = measure("our loop", lambda: our_loop(model, tokenizer, prompts, options.tokens), None)
    if not options.skip_continuous:
        measure("generate_batch", lambda: continuous(model, tokenizer, prompts, options.tokens), reference)
    del model
    folder: Path = checkpoint.folder.resolve()
    with vllm_server(options.vllm, folder, dtype="float32", length=1024, seconds=900) as url:
        served(url, prompts[:1], 1)
        measure("vLLM", lambda: served(url, prompts, options.tokens), reference)


if __name__ == "__main__":
    main()
