"""Models of transformers, and how they build a mixture of experts; no other package of seawall depends on that.

Every supported family calls its routed experts as `experts(hidden_TD, indices_TK, weights_TK)`. At that call routing is
recorded and replayed, and a subset of the experts is trained.

Shapes: `T` tokens, `L` MoE layers, `E` routed experts of a layer, `K` experts per token, `S` selected experts of a
layer, `D` model width, `I` expert width, `P` prompts.
"""
