"""Capability of a model: tasks of lm-evaluation-harness, saved per question, to be paired before and after."""
