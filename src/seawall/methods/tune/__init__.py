"""Fine-tuning inside the safety basin (AsFT, arXiv 2506.08473), its controls and its baselines.

context.py          recipe, run folder, data, processes, model and base
stages.py           the run: anchor, trainings, evaluations
methods.py          every method: what it adds to supervised fine-tuning
data.py             the task, the recipe's prompts and the held-out prompts
rows.py             training rows, harmful and safe rows, tokenisation
anchor.py           the alignment directions of each matrix, from two checkpoints
spectrum.py         leading left singular vectors of a matrix
basin.py            `SafetyBasin`: the penalty as a term of any trainer's loss
penalty.py          the AsFT penalty and its controls
drift.py            `RoutingDrift`: a penalty on the routing of harmful prompts (SafeMoE's idea)
terms.py            terms added to a trainer's loss
safelora.py         Safe LoRA: project a trained adapter onto the alignment directions
sft.py              supervised fine-tuning of a LoRA adapter with TRL
trainer.py          TRL's trainer with a finite loss
evaluate.py         refusals and task score of a model
training_record.py  names and files of the stages
claim.py            what may be said
view.py             terminal table and page
"""
