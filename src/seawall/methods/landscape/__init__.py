"""The safety landscape: the harmful rate while the weights move along alignment, a fine-tuning, or random directions.

context.py     recipe, checkpoint, directions and held-out prompts
stages.py      the algorithm: grid, measurement at each point, basins
directions.py  directions of weight space, streamed from checkpoints and adapters
moved.py       a loaded model whose weights move along directions and come back
extent.py      the width of a basin from a curve of rates
claim.py       what may be said
view.py        terminal table and page
"""
