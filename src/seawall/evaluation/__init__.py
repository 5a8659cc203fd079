"""Evaluates a model: attack success, refusals, over-refusal, compliance, loss on gold answers, capability."""
