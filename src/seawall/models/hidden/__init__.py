"""Hidden states: reading and changing the residual stream and what attention, MLP and experts write to it."""
