"""Writes docs/families.md: which mixture-of-experts classes of the installed transformers pass seawall's self-check.

    python scripts/family_list.py            # writes the page
    python scripts/family_list.py mixtral    # prints the rows of these families

Each class is built as a tiny random model: the configuration's own defaults, with every size that the table below
names made small. The self-check finds the experts, records the routing, replays it, splits experts off for training,
reads the rule of routing, and compares rows in a batch, and passes entered in the middle, with the plain pass.
"""

from __future__ import annotations

import argparse
import logging
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from seawall.errors import SeawallError
from seawall.models.greedy import rows_are_independent
from seawall.models.hidden.enter_at_layer import can_enter_at_layer
from seawall.models.moe.capture import capture
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.replay import replay
from seawall.models.moe.routing import routing_rules

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
_LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises where a configuration does not fit its model."""
EXPERTS, LAYERS, TOKENS = 8, 4, 16
MEMORY = 8 * 10**9
"""Bytes of address space: a class whose sizes the table below does not name would take all of the memory."""
SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "global_head_dim": 8,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "intermediate_size_mlp": 32,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "sliding_window": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_nextn_predict_layers": 0,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": True,
    "linear_head_dim": 8,
    "linear_num_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""Settings by their name in configurations; those that a configuration lacks are left out."""
OVERRIDES: dict[str, dict[str, Any]] = {
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2), "num_dense_layers": 1},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"] * (LAYERS // 2),
        "head_dim": 16,
        "per_layer_config": {layer: {"num_attention_heads": 2, "num_key_value_heads": 2} for layer in (1, 3)},
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "global_head_dim": 16,
        "num_experts": EXPERTS,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
}
"""What single configurations ask for."""
PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "moe_layer_types",
    "indexer_types",
    "compress_ratios",
    "layers_block_type",
)
"""Lists with one entry per decoder layer, which are cut to its last ones."""
FROM_THE_FIRST = ("indexer_types",)
"""Those that are cut to their first ones: a layer may reuse what an earlier one chose."""
WITHOUT_DEFAULT = (
    "n_group",
    "topk_group",
    "head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
)
"""Settings that are made small where the default is null, too."""
COUNTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


@dataclass(frozen=True)
class Family:
    """One row of the page."""

    name: str
    result: str
    batches: str = ""
    entry: str = ""
    note: str = ""

    def row(self) -> str:
        """The row in Markdown."""
        return f"| `{self.name}` | {self.result} | {self.batches} | {self.entry} | {self.note} |"


def families() -> list[str]:
    """Names of the causal language models of transformers whose configuration counts experts.

    A model with other parts than its text model is left out for the latter, where transformers has that alone.
    """
    names = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]
    return sorted(name for name in names if f"{name}_text" not in names and _counts(name))


def _counts(name: str) -> bool:
    try:
        config = CONFIG_MAPPING[name]().get_text_config()
    except _LIBRARY_ERRORS:  # a default configuration that its own library refuses
        return False
    return any(hasattr(config, key) for key in COUNTS)


def tiny_model(name: str) -> PreTrainedModel:
    """A random model of the family with small sizes; biases and buffers of routers differ from zero."""
    default = CONFIG_MAPPING[name]()
    # Gemma 4 and others give single layers other sizes, which are read of a layer.
    first = default.per_layer_config[0] if getattr(default, "is_heterogeneous", False) else default
    settings = {key: value for key, value in SIZES.items() if getattr(first, key, None) is not None}
    settings |= {key: SIZES[key] for key in WITHOUT_DEFAULT if hasattr(first, key)}
    for key in PER_LAYER:
        entries = getattr(default, key, None)
        derived = isinstance(getattr(type(default), key, None), property)
        if isinstance(entries, list) and len(entries) > LAYERS and not derived:
            settings[key] = entries[:LAYERS] if key in FROM_THE_FIRST else entries[-LAYERS:]
    settings |= OVERRIDES.get(name, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings), dtype=torch.float32).eval()
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and key.endswith("bias"):
                torch.nn.init.normal_(tensor.data, std=0.1)
    return model


def self_check(moe: MoEModel) -> Iterator[tuple[str, Callable[[], None]]]:
    """(what is checked, a function that raises where it fails), in order."""
    ids = (torch.arange(3 * TOKENS).view(3, TOKENS) * 7 + 3) % 272
    model = moe.model
    with torch.no_grad(), capture(moe, logits=True) as trace:
        expected = model(ids, use_cache=False).logits

    def same(output: torch.Tensor, tolerance: float) -> None:
        difference = float((output - expected).abs().max() / expected.std())
        if not difference <= tolerance:
            raise SeawallError("the output differs", got=f"{difference:.1e} of the logits' spread")

    def replayed() -> None:
        with torch.no_grad(), replay(moe, trace):
            same(model(ids, use_cache=False).logits, 1e-5)

    def split_off() -> None:
        with torch.no_grad(), trainable_experts(moe, [[0, 3, 5]] * moe.num_layers):
            same(model(ids, use_cache=False).logits, 1e-4)

    yield "recording", trace.require_complete
    yield "replay", replayed
    yield "training of some experts", split_off


def check(name: str) -> Family:
    """The family's row."""
    try:
        model = tiny_model(name)
        with torch.no_grad():
            model((torch.arange(8)[None] * 5 + 3) % 272, use_cache=False)
    except _LIBRARY_ERRORS as error:  # says only that the table of sizes lacks some
        return Family(name, "not built", note=_line(error))
    stage = "search for experts"
    try:
        moe = find_moe(model)
        for name_of_check, attempt in self_check(moe):
            stage = name_of_check
            attempt()
    except (SeawallError, RuntimeError, TypeError, ValueError) as error:
        return Family(name, "**refused**", note=f"{stage}: {_line(error)}")
    batches = "yes" if rows_are_independent(model, TOKENS) else "one row at a time"
    entry = "yes" if can_enter_at_layer(model) else "whole passes"
    return Family(name, "ok", batches, entry, _router_note(moe))


def _router_note(moe: MoEModel) -> str:
    """Empty where the pairwise router step works."""
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model((torch.arange(3 * TOKENS).view(3, TOKENS) * 5 + 1) % 272, use_cache=False)
    try:
        routing_rules(moe, trace)
    except SeawallError:
        return "no router step: its choices do not follow from its logits"
    return ""


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "/")
    return (text[:157] + "...") if len(text) > 160 else text or type(error).__name__


def page(rows: list[Family]) -> str:
    """The page in Markdown."""
    counts = {result: sum(row.result == result for row in rows) for result in ("ok", "**refused**", "not built")}
    return "\n".join(
        [
            "# Families",
            "",
            "Written by `python scripts/family_list.py`, which builds a tiny random model of every class of",
            f"transformers {transformers.__version__} that counts experts, and runs seawall's self-check on it:",
            "experts found, routing recorded and replayed exactly, some experts split off for training.",
            f"{counts['ok']} pass, {counts['**refused**']} are refused. {counts['not built']} are not built, for",
            "want of small sizes in the script, which says nothing about seawall. `seawall doctor MODEL` tells of",
            "your model.",
            "",
            "- **Batches.** A row padded on the left, beside a longer row, is the row alone. Where it is not,",
            "  seawall generates and repairs one row at a time, and a step that would pad refuses.",
            "- **Entry.** A pass can start at an inner layer from recorded hidden states. Where layers hand on",
            "  more than these, seawall runs whole passes: slower, the same result.",
            "",
            "| family | self-check | batches | entry | note |",
            "|---|---|---|---|---|",
            *(row.row() for row in rows),
            "",
        ]
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="print the rows of these families alone")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rows = []
    for name in args.family or families():
        rows.append(check(name))
        print(rows[-1].row(), flush=True)
    if not args.family:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
