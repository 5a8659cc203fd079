"""Memory, disk and time of every verb, from a model's configuration and a recipe; no weight is loaded.

shapes.py    sizes of a model, read from its modules on the meta device
memory.py    bytes of each term: activations, logits, cache, optimizer; the formulas
stages.py    stages of a verb, their moments (terms of memory that exist at once) and their work
engines.py   the moments of replies by each engine
request.py   what is planned for: model, recipe, prompts, memory settings
verbs.py     the verbs of the main job as stages: run, profile, select, eval, export
repair.py    the repair as a stage
audit.py     the audits as stages
methods.py   the other verbs as stages, and the table of all verbs
training.py  each training of a verb: what trains, and how much of it is in memory
rates.py     tokens per second: from operations per second, or measured
slices.py    a model of one or two layers at the real shapes, measured and extrapolated
verdict.py   the plan of a verb, whether it fits a device, and the settings with which it does
placement.py one GPU or several, and the limits of each, for `model.device_map: auto`
"""
