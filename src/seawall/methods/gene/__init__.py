"""SafeGene (arXiv 2606.06519): the safety of a model family as an adapter, distilled once and grafted onto siblings.

context.py       recipe, run folder, checkpoints and prompts of an extraction
stages.py        the extraction: replies, degraded model, layer scores, distillation
degrade.py       the degraded model, where the recipe names none
distil.py        step (a): distil the difference of aligned and degraded model into LoRA factors
select.py        step (b): score decoder layers, keep the best
launched.py      the adapter in every process of a launch: attached, trained, disabled
experts.py       scores of experts in a gene's stacks, and genes on some of them
coefficients.py  step (c): one coefficient per layer, tuned on a few examples
graft.py         graft a gene onto a fine-tuned model, and take it off
methods.py       the methods of a graft: the gene, or safety fine-tuning (baseline)
safelora.py      Safe LoRA on the task's adapter (baseline)
examples.py      tokenised examples, teacher targets and losses
replies.py       the aligned model's replies, and their file
shots.py         the refusals, task examples and harmless requests of a graft
task_model.py    the fine-tuned model: checkpoint or adapter, and the check of the written graft
match.py         whether gene and model belong together
compose.py       several genes as one, and their interference
tools.py         `select` and `compose` on gene folders
claim.py         what may be said of a gene and of a graft
view.py          terminal tables, page and JSON
"""
