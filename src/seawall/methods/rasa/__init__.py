"""RASA (arXiv 2602.04448): find the experts that successful jailbreaks use, and repair these alone."""
