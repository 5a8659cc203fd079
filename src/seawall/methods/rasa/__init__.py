"""RASA (arXiv 2602.04448): find the experts that successful jailbreaks use, and repair only these.

context.py   kept pairs, retained answers, and the inputs of the stages
stages.py    the stages of a run: profile, select, evaluate, repair
profiling/   pairs of plain request and attack, and where their tokens are routed (sections 3.1 and 3.2)
selection/   scores of experts, the selection, its stability, and its controls (section 3.2)
repair/      rounds of an expert step and a router step (sections 3.3 and 3.4)
"""
