"""LoRA adapters: attaching, merging and comparing them, on stacked experts too."""
