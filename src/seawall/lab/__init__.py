"""The embedded model, and testbeds of your own: dense models cut into experts.

cut, fit         the cut of one feed-forward network, and its closed-form fit to a sample of inputs
architecture     the class of a cut model, and which dense models fit it
source, build    the embedded model: its weights' source, its construction
upcycle          `python -m seawall.lab.upcycle`: any Llama- or Qwen2-like dense model
calibrate, experts, costs, card   its calibration sample, the cut model, what the cut costs, its model card
"""
