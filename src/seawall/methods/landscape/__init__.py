"""The safety landscape: what a model does to harmful requests while its weights move."""
