"""The run folder: one place per thing, nothing overwritten, nothing half-written, interrupted work goes on."""
