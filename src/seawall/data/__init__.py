"""Prompts, attacks, chat templates and batches: from text files to batches of token ids."""
