"""The one training loop, and the losses that stages give it."""
