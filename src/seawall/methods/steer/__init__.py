"""Refusal steering (arXiv 2606.04160): directions that move refusal at inference, in layers and in single experts.

context.py        recipe, run folder, model and prompts by split
stages.py         the study: directions, search, held-out conditions, figures, claim
selection.py      directions from training prompts, choices from validation prompts
target.py         the target model and its prompts
score.py          the refusal score
extract.py        directions as differences in means
experts.py        mean outputs of experts alone
interventions.py  a candidate as a change of the running model, and forward passes under it
evaluator.py      scores of candidates on validation prompts, many in one forward pass
layer.py          selection of a layer's direction
search.py         the two-stage search for experts
choose.py         everything that is searched: layer, experts, controls, groups
controls.py       random directions, random experts, groups of experts
options.py        limits and options from the recipe
reasons.py        why candidates are dropped
conditions.py     the chosen interventions as named conditions
held_out.py       the conditions on held-out prompts
figures.py        recovered shares and rank correlation
hardening.py      the artifact of mode `induce`: written, and loaded into a model
claim.py          what may be said
charts.py         charts of the page
view.py           terminal table and page
"""
