"""Standard errors, paired comparisons and verdicts: numpy and scipy, no model and no files.

Two things make a difference between two arms uncertain, and both are counted: the seeds (seeds.py) and the items
(items.py).
"""
