"""Prompts, attacks, chat templating and batches: everything between a file of text and a batch of token ids."""
