"""Sizes in a model's configuration, by decoder layer.

Some families give single layers other sizes (Gemma 4: wider heads in layers of full attention). transformers refuses to
read such a size from the whole configuration, so it is read of every layer.
"""

from __future__ import annotations

from transformers import PreTrainedConfig


def sizes(text: PreTrainedConfig | None, name: str) -> tuple[int, ...]:
    """An integer of the configuration for each decoder layer, once where all have the same; 0 where there is none.

    Args:
        text: of the language model; None where there is none.
        name: of the setting, such as `head_dim`.
    """
    if text is not None and getattr(text, "is_heterogeneous", False):
        return tuple(_integer(layer, name) for layer in text.per_layer_config)
    return (_integer(text, name),)


def largest(text: PreTrainedConfig | None, name: str) -> int:
    """The largest of `sizes`, which is the size itself where all layers have the same."""
    return max(sizes(text, name), default=0)


def _integer(config: PreTrainedConfig | None, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0
