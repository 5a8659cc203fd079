"""The training loop, and the losses of the stages."""
