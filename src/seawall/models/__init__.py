"""How transformers builds a mixture of experts: the only place in seawall that knows.

Every family that seawall supports calls its routed experts as `experts(hidden_TD, indices_TK, weights_TK)`. That call
is the seam: routing is recorded and replayed there, and a subset of the experts is trained there.

Shapes: `T` tokens, `L` MoE layers, `E` routed experts of a layer, `K` experts per token, `S` selected experts of a
layer, `D` model width, `I` expert width, `P` prompts.
"""
