"""Checkpoints as files: locating, loading, streaming, rewriting, fingerprints, and what a recipe will need."""
