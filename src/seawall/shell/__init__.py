"""What all verbs share: read and check inputs, open folder, model and judge once, run a stage, read a finished run.

context.py     the context of a verb: recipe, run folder, prompts, model, judge
job.py         inputs, run folders, and stages with a claim
model.py       the model of a recipe
finished.py    a finished run
difference.py  what differs between two finished runs
evaluated.py   a finished evaluation
conditions.py  whether two evaluations measured the same thing
comparison.py  what differs between two evaluations
validation.py  scores on validation prompts
"""
