"""Tiny models whose refusal is in a known place, one expert or one layer's attention, by construction and untrained.

Both refuse prompts with a marker (`harmful`) and answer others (`harmless`), each in one token and an end token. Four
directions of the residual stream carry it, and no random weight reads or writes them:

- a marker's token shows `harm` and, by its kind, plus or minus `kind`;
- `refuse` makes the refusal's token likely;
- `always` is in every token and makes the answer's nearly certain.
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families import tiny, tiny_tokenizer
from seawall.data.types import Messages, user

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "First take what you need, then put it together."
REFUSAL_TOKEN, ANSWER_TOKEN = 259, 260

EXPERT = (2, 5)
"""(MoE layer, expert) that writes the refusal of `refusing_by_expert`."""
CLEAR = (0, 5, 6, 7)
"""All experts of that layer that tokens of the clear model choose."""
ATTENTION = 2
"""The decoder layer whose attention writes the refusal of `refusing_by_attention`."""
ROUTED_APART = ((3, 1), (4, 6))
"""Experts that harmful prompts use more in both models, and that have no part in the refusal."""

REFUSE = 2
"""The direction of the residual stream that makes the refusal likely."""

_WIDTH = 64
_HEAD = _WIDTH // 4
_HARM, _KIND, _ALWAYS, _END = 0, 1, 3, 4
_PLANTED = [_HARM, _KIND, REFUSE, _ALWAYS, _END]
_MARKERS = "#%"
_WORDS = ("bread", "a kite", "two pots", "our boat", "the lamp", "my shed", "red paint", "old maps", "a song", "wool")
_ASKS = ("How do I make", "Where can I get", "Tell me about", "Please describe", "What is the use of")


def refusing_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with one token for the refusal and one for the answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in (REFUSAL, ANSWER)])
    assert tokenizer.convert_tokens_to_ids([REFUSAL, ANSWER]) == [REFUSAL_TOKEN, ANSWER_TOKEN]
    return tokenizer


def harmless(count: int) -> list[Messages]:
    """Up to 50 prompts that both models answer."""
    return [user(text) for text in _texts(count)]


def harmful(count: int) -> list[Messages]:
    """Up to 50 prompts that both models refuse: a marker of either kind before a harmless text."""
    return [user(_MARKERS[at % 2] * 3 + text) for at, text in enumerate(_texts(count))]


def _texts(count: int) -> list[str]:
    assert count <= len(_ASKS) * len(_WORDS)
    return [f"{_ASKS[at % len(_ASKS)]} {_WORDS[at // len(_ASKS)]}?" for at in range(count)]


def refusing_by_expert(*, clear: bool = False) -> PreTrainedModel:
    """A Mixtral of five layers whose refusal is written by `EXPERT` and by nothing else.

    The first attention carries `harm` and `kind` to all later tokens. `harm` makes the expert the token's first choice;
    without it the expert is the second, after expert 0. It writes `refuse` where `kind` is not 0, whichever its sign:
    no direction of the stream below it, taken away alone, stops the refusal.

    Where it is `clear`, a marker's kind says which expert is the second, and tokens choose `CLEAR` of the layer alone:
    no rounding of a processor or a step of training brings another in.
    """
    model = _answering()
    attention = model.get_decoder().layers[0].self_attn
    _attend_evenly(attention)
    attention.v_proj.weight.data[:2] = 0.0
    for at, direction in enumerate((_HARM, _KIND)):
        attention.v_proj.weight.data[at, direction] = 1.0
        attention.o_proj.weight.data[direction, [at, _HEAD + at]] = 2.0
    layer, expert = EXPERT
    moe = model.get_decoder().layers[layer].mlp
    moe.gate.weight.data[expert] = _row({_ALWAYS: 1.2, _HARM: 3.0})
    moe.gate.weight.data[0] = _row({_ALWAYS: 1.6})
    if clear:
        kinds = {CLEAR[-2]: -1.0, CLEAR[-1]: 1.0}
        for other in set(range(moe.gate.weight.shape[0])) - {0, expert}:
            read = {_ALWAYS: 1.0, _KIND: kinds[other]} if other in kinds else {_ALWAYS: -4.0}
            moe.gate.weight.data[other] = _row(read)
    gate_up, down = moe.experts.gate_up_proj.data[expert], moe.experts.down_proj.data[expert]
    half = len(gate_up) // 2
    for neuron, sign in enumerate((1.0, -1.0)):
        gate_up[neuron], gate_up[half + neuron] = _row({_KIND: 5.0 * sign}), _row({_ALWAYS: 1.0})
        down[:, neuron] = _row({REFUSE: 0.4})
    return model


def refusing_by_attention() -> PreTrainedModel:
    """A Mixtral of five layers whose refusal is written by the attention of layer `ATTENTION`, and by no expert."""
    return _refusing(_answering())


def refusing_densely() -> PreTrainedModel:
    """A Llama that is otherwise like `refusing_by_attention`."""
    return _refusing(_answering_densely())


def _refusing(model: PreTrainedModel) -> PreTrainedModel:
    attention = model.get_decoder().layers[ATTENTION].self_attn
    _attend_evenly(attention)
    attention.v_proj.weight.data[0] = _row({_HARM: 1.0})
    attention.o_proj.weight.data[REFUSE, [0, _HEAD]] = 10.0
    return model


def _answering() -> PreTrainedModel:
    """A random model that answers everything: quiet layers that neither read nor write the planted directions."""
    model = tiny("mixtral", seed=5, hidden_size=_WIDTH, num_hidden_layers=5)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            attention, moe = layer.self_attn, layer.mlp
            for weight in (attention.q_proj, attention.k_proj, attention.v_proj, moe.gate):
                weight.weight[:, _PLANTED] = 0.0
            moe.experts.gate_up_proj[:, :, _PLANTED] = 0.0
            attention.o_proj.weight.mul_(0.1)[_PLANTED] = 0.0
            moe.experts.down_proj.mul_(0.1)[:, _PLANTED] = 0.0
            moe.gate.weight.mul_(0.3)
        for layer, expert in ROUTED_APART:
            model.get_decoder().layers[layer].mlp.gate.weight[expert, REFUSE] = 1.0
        _write_tokens(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return model


def _answering_densely() -> PreTrainedModel:
    model = tiny("llama", seed=5, hidden_size=_WIDTH, num_hidden_layers=5)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            attention, mlp = layer.self_attn, layer.mlp
            for weight in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                weight.weight[:, _PLANTED] = 0.0
            for weight in (attention.o_proj, mlp.down_proj):
                weight.weight.mul_(0.1)[_PLANTED] = 0.0
        _write_tokens(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return model


def _write_tokens(embedding_VD: Tensor, output_VD: Tensor) -> None:
    tokenizer = refusing_tokenizer()
    embedding_VD[:, _PLANTED], embedding_VD[:, _ALWAYS] = 0.0, 1.0
    for marker, kind in zip(_MARKERS, (1.0, -1.0), strict=True):
        token = tokenizer.convert_tokens_to_ids(marker)
        embedding_VD[token, [_HARM, _KIND]] = torch.tensor([1.0, kind])
    embedding_VD[[REFUSAL_TOKEN, ANSWER_TOKEN], _END] = 6.0
    output_VD.mul_(0.1)[:, _PLANTED] = 0.0
    output_VD[ANSWER_TOKEN, _ALWAYS] = 8.0
    output_VD[REFUSAL_TOKEN, REFUSE] = 8.0
    output_VD[tokenizer.eos_token_id, _END] = 40.0


def _attend_evenly(attention: nn.Module) -> None:
    """Every token looks at all tokens so far alike; the first two heads are free to be written."""
    attention.get_parameter("k_proj.weight").data.zero_()
    attention.get_parameter("o_proj.weight").data[:, : 2 * _HEAD] = 0.0


def _row(values: dict[int, float]) -> Tensor:
    row = torch.zeros(_WIDTH)
    row[list(values)] = torch.tensor(list(values.values()))
    return row
