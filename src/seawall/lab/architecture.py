"""The class of a cut model, transformers' Glm4MoeForCausalLM: its configuration, and whether a dense model fits it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, PreTrainedConfig, PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.lab.cut import LabShape

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_IN_FLOAT32 = "e_score_correction_bias"
_PROBE_TOKENS = 24
_TOLERANCE = 1e-3
_EXPECTED = "a dense model like Llama or Qwen2, of which only the feed-forward networks change"


def moe_config(dense: PreTrainedModel, shape: LabShape) -> Glm4MoeConfig:
    """The configuration of the cut model. `routed_scaling_factor = top_k` keeps each expert's gate weight near 1.

    Embedding and output layer are not tied, because vLLM's class of this family does not tie them.
    """
    old, tensors = dense.config, dense.state_dict()
    return Glm4MoeConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters={**old.rope_parameters, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
        attention_bias="model.layers.0.self_attn.q_proj.bias" in tensors,
        use_qk_norm="model.layers.0.self_attn.q_norm.weight" in tensors,
        first_k_dense_replace=shape.first_dense,
        moe_intermediate_size=shape.padded_width(old.intermediate_size),
        n_routed_experts=shape.experts,
        n_shared_experts=shape.shared_experts(old.intermediate_size),
        num_experts_per_tok=shape.top_k,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=float(shape.top_k),
        num_nextn_predict_layers=0,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
    )


def untied_state(dense: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a dense model by name, with an output layer of its own where the model ties it."""
    state = {name: tensor.detach() for name, tensor in dense.state_dict().items() if "rotary" not in name}
    if dense.config.tie_word_embeddings:
        state[_OUTPUT] = state[_EMBEDDING].clone()
    return state


def assemble(config: Glm4MoeConfig, state: Mapping[str, Tensor], dtype: torch.dtype) -> Glm4MoeForCausalLM:
    """A model of the given tensors, in evaluation mode; the selection bias of the routers stays in float32.

    Tensors that have the type already are not copied.
    """
    config.dtype = dtype
    with torch.device("meta"):
        model = Glm4MoeForCausalLM(config)
    typed = {name: tensor if name.endswith(_IN_FLOAT32) else tensor.to(dtype) for name, tensor in state.items()}
    model.load_state_dict(typed, strict=True, assign=True)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(typed[_EMBEDDING].device)
    return model.eval()


def require_fit(dense: PreTrainedModel) -> None:
    """Checks that the class can compute what a dense model computes: tensors by name, then the logits of a probe.

    Args:
        dense: in float32.

    Raises:
        UnsupportedModelError: as `require_settings`; or the model has tensors that the class lacks, or computes
            something else with the same weights (multipliers, other norms, layers without positions).
    """
    require_settings(dense.config)
    state = untied_state(dense)
    # No expert and no router: every layer stays dense.
    config = moe_config(dense, LabShape(first_dense=dense.config.num_hidden_layers, whole=0, experts=1, top_k=1))
    _require_tensors(dense.config, state, config)
    ids_1T = (torch.arange(_PROBE_TOKENS, device=dense.device) * 7919 % dense.config.vocab_size)[None]
    with torch.inference_mode():
        expected = dense(input_ids=ids_1T).logits
        difference = (assemble(config, state, torch.float32)(input_ids=ids_1T).logits - expected).abs().max()
    if not difference <= _TOLERANCE * expected.std():
        got = f"a logit difference of {float(difference):.3g} with the same weights"
        raise _unsupported(dense.config, "computes something that the class does not", got)


def require_settings(config: PreTrainedConfig) -> None:
    """Checks the settings of a dense model, before its weights are loaded.

    Raises:
        UnsupportedModelError: activation, window or positions are none that the class has.
    """
    names = (getattr(config, key, None) for key in ("hidden_act", "hidden_activation", "activation_function"))
    activation = next((name for name in names if name is not None), None)
    if activation not in ("silu", "swish"):
        raise _unsupported(config, "has another activation than SiLU", str(activation))
    windows = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or (["sliding_attention"] if windows else [])
    if any(kind != "full_attention" for kind in layers):
        partial = sorted(set(layers) - {"full_attention"})
        raise _unsupported(config, "has layers without full attention", f"{', '.join(partial)}, window {windows}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        got = f"rope_type={rope.get('rope_type')}, partial_rotary_factor={rope.get('partial_rotary_factor', 1.0)}"
        raise _unsupported(config, f"has positions other than rope of all dimensions ({', '.join(ROPE_TYPES)})", got)


def _require_tensors(config: PreTrainedConfig, state: Mapping[str, Tensor], target: Glm4MoeConfig) -> None:
    with torch.device("meta"):
        places = {name: tensor.shape for name, tensor in Glm4MoeForCausalLM(target).state_dict().items()}
    surplus = sorted(name for name in state if name not in places)
    if surplus:
        raise _unsupported(config, "has tensors without a place in the class", f"{len(surplus)}, {surplus[0]} first")
    lacking = sorted(name for name, size in places.items() if name not in state or state[name].shape != size)
    if lacking:
        raise _unsupported(config, "lacks tensors of the class", f"{len(lacking)}, {lacking[0]} first")


def _unsupported(config: PreTrainedConfig, what: str, got: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a {config.model_type} model cannot become {Glm4MoeForCausalLM.__name__}: it {what}",
        got=got,
        expected=_EXPECTED,
    )
