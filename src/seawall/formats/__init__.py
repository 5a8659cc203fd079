"""Formats of other tools, written from run folders and recipes.

`evaluations` reads what is exported. `inspect_log`, `bom` and `trackers` write a run for Inspect, for CycloneDX and for
experiment trackers; `signature` signs folders and checks them, with the keys of `signers`. `task_folder` writes our
`measures` as tasks, which `harness_task` runs inside lm-eval and `solver` inside Inspect.
"""
