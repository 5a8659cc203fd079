"""Refusal steering: directions that move refusal, in layers and in single experts (arXiv 2606.04160)."""
