"""Formats of other tools, written from run folders: Inspect logs, evaluation tasks, signatures, bills of materials.

`evaluations` reads what is exported; `inspect_log`, `bom` and `signature` write or check one format each; `tasks`
writes our measures as tasks, which `harness_task` and `solver` run inside lm-eval and Inspect.
"""
