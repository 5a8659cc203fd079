"""The verbs of the command line as functions, for scripts and notebooks; `import seawall` exports them.

runs.py    run, evaluate, audit, steer, landscape, tune
genes.py   extract_gene, graft
checks.py  load, gate, diff, doctor, plan
common.py  recipes with settings, progress, results
"""
