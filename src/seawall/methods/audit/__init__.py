"""Is a repair real, and what does it rest on? Every audit has its control, and a sentence that does not flatter it."""
