"""Fine-tuning inside the safety basin (AsFT, arXiv 2506.08473): the anchor, the penalty, and training with it."""
