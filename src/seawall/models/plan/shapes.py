"""Sizes of a model that decide memory and time, read from its modules on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.files.inspect import ModelSummary, MoESummary
from seawall.models.lora.attach import find_points
from seawall.models.sizes import largest, sizes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """Sizes of a model. Elements are numbers per token and decoder layer.

    Attributes:
        parameters: all parameters, tied ones once.
        active_parameters: parameters that one token uses.
        layers: number of decoder layers.
        width: D.
        vocabulary: V.
        query: elements of the queries, and of the attention's output.
        keys: elements of keys and values together, as the attention reads them.
        cache: elements in the key-value cache.
        normed: elements that norms inside the attention read; 0 without such norms.
        feed_forward: inner width of a dense layer's feed-forward network.
        element_bytes: size of one weight in memory.
        adapted: elements of a rank-1 adapter of every linear layer and expert stack, by the last part of their name.
        stacked: parameters of all expert stacks.
        moe: the routed experts; None for a dense model.
        implementation: of the experts in transformers; None for the default, grouped products.
    """

    parameters: int
    active_parameters: int
    layers: int
    width: int
    vocabulary: int
    query: int
    keys: int
    cache: int
    normed: int
    feed_forward: int
    element_bytes: int
    adapted: tuple[tuple[str, int], ...] = ()
    stacked: int = 0
    moe: MoESummary | None = None
    implementation: str | None = None

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.element_bytes

    def low_rank(self, rank: int, targets: tuple[str, ...] | None = None) -> int:
        """Parameters of an adapter of these matrices; None adapts every linear layer and expert stack."""
        chosen = [size for name, size in self.adapted if targets is None or name in targets]
        return rank * sum(chosen)


def model_shapes(
    summary: ModelSummary, model: PreTrainedModel, dtype: str, implementation: str | None = None
) -> ModelShapes:
    """The sizes of a model.

    Args:
        summary: of the model.
        model: on the meta device.
        dtype: of the weights in memory, by its name in PyTorch; `auto` for that of the files.
        implementation: `model.experts_implementation`.

    Raises:
        UnsupportedModelError: the sizes in config.json make no model.
    """
    _require_sizes(summary)
    text = model.config.get_text_config()
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    # Where layers differ, a plan counts the widest: the activations of one layer are held at a time.
    widest = [
        (heads, key_heads or heads, head or summary.width // max(1, heads))
        for heads, key_heads, head in zip(*(sizes(text, name) for name in names), strict=True)
    ]
    heads, key_heads, head = max(widest, key=lambda layer: layer[0] * layer[2])
    latent = bool(largest(text, "kv_lora_rank"))
    if latent:  # multi-head latent attention expands keys and values of every head (DeepSeek-V2, arXiv 2405.04434)
        head = largest(text, "qk_nope_head_dim") + largest(text, "qk_rope_head_dim")
        value = largest(text, "v_head_dim") or head
        keys, normed = heads * (head + value), largest(text, "kv_lora_rank") + largest(text, "q_lora_rank")
    else:
        keys = max(2 * key_count * width for _, key_count, width in widest)
        inside = any(name.endswith("q_norm") for name, _ in model.named_modules())
        normed = (heads + key_heads) * head if inside else 0
    moe = summary.moe
    return ModelShapes(
        parameters=summary.parameters,
        active_parameters=summary.active_parameters,
        layers=summary.decoder_layers,
        width=summary.width,
        vocabulary=summary.vocabulary,
        query=heads * head,
        keys=keys,
        cache=summary.cache_elements,
        normed=normed,
        feed_forward=largest(text, "intermediate_size"),
        element_bytes=ELEMENT_BYTES.get(summary.dtype if dtype == "auto" else dtype, 2),
        adapted=_adapted(model),
        stacked=0 if moe is None else moe.layers * moe.experts * moe.expert_parameters,
        moe=moe,
        implementation=implementation,
    )


def require_moe(shapes: ModelShapes, verb: str) -> MoESummary:
    """The routed experts of a model.

    Raises:
        UnsupportedModelError: the model has none that seawall can reach.
    """
    if shapes.moe is None:
        raise UnsupportedModelError(
            f"{verb} needs a mixture-of-experts model",
            got="a dense model, or experts that seawall cannot reach",
            remedy="`seawall doctor` names the reason; dense models can be planned for eval, steer, gene, tune and "
            "landscape",
        )
    return shapes.moe


def _adapted(model: PreTrainedModel) -> tuple[tuple[str, int], ...]:
    """Elements of a rank-1 adapter by the last part of the matrices' names, summed over layers (and experts)."""
    sizes: dict[str, int] = {}
    for name, point in find_points(model).items():
        *stack, rows, columns = point.shape
        short = name.removesuffix(".weight").rpartition(".")[2]
        sizes[short] = sizes.get(short, 0) + (stack[0] if stack else 1) * (rows + columns)
    return tuple(sizes.items())


def _require_sizes(summary: ModelSummary) -> None:
    sizes = {"width": summary.width, "vocabulary": summary.vocabulary, "decoder layers": summary.decoder_layers}
    wrong = [f"{name} {size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise UnsupportedModelError("the sizes in config.json make no model", got=wrong[0], expected="1 or more")
