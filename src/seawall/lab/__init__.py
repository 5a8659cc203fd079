"""The embedded model: the source of its weights, its construction, and its prompts."""
