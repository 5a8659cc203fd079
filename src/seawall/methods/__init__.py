"""The methods, one folder each, with the same file names: `context`, `stages`, `methods`, `claim`, `view`.

They do not know each other.
"""
