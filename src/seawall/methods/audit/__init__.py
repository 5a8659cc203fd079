"""Audits of a model or a repair. Each has a control, and a claim that says no more than its numbers.

    context.py       the audited model, its profile, and the run's evaluations
    conditions.py    the same prompts in every condition, with samples, rates and paired changes
    methods.py       every audit by its name in recipes
    shortcut.py      routing shortcut: does the repair survive the original routing?
    patching.py      patch target: which part of the repair carries the gain, routers, experts or attention?
    patches.py       conditions of that audit
    silencing.py     masked experts: do refusals rest on a few experts?
    localisation.py  is safety in experts at all?
    switches.py      experts switched off and on at inference, without a repair (recipe key `steering`)
    tamper.py        does the repair survive fine-tuning?
    fine_tuning.py   examples and training of the tamper audit
    view.py          terminal table

One file per audit holds its measurement, its claim and its page section.
"""
