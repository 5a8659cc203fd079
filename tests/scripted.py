"""Tiny models that answer every prompt with the same pieces of text, each a token of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from families import CHATML

OPENS_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
assert OPENS_THOUGHT != CHATML
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""As gpt-oss."""
HARMONY_TOKENS = ("<|endoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
REFUSAL = "I'm sorry, but I can't help with that."


def scripted_tokenizer(
    pieces: Sequence[str] = (),
    *,
    template: str = CHATML,
    special: Sequence[str] = CHATML_TOKENS,
    eos: str = "<|im_end|>",
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with one added token per piece that is not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces if piece not in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token="<|endoftext|>",
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def scripted_model(
    tokenizer: PreTrainedTokenizerFast, reply: Sequence[str], *, positions: int = 1024
) -> LlamaForCausalLM:
    """A model that writes `reply`, whose pieces are tokens and all different, and then begins again."""
    size, ids = len(tokenizer), [int(tokenizer.convert_tokens_to_ids(piece)) for piece in reply]
    assert len(set(ids)) == len(ids)
    width = size + (-size) % 8
    config: Any = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.get_input_embeddings().weight[:, :size] = torch.eye(size)
        following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
        for token in range(size):
            model.get_output_embeddings().weight[following.get(token, ids[0]), token] = 1.0
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def write_scripted(folder: Path, reply: Sequence[str], *, positions: int = 1024, **tokenizer: Any) -> Path:
    """Writes a scripted model with its tokenizer; `tokenizer`: as `scripted_tokenizer`."""
    words = scripted_tokenizer(reply, **tokenizer)
    scripted_model(words, reply, positions=positions).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
