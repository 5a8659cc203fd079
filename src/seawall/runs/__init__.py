"""The run folder: nothing is overwritten or half-written, and interrupted work resumes."""
