"""Standard errors, paired comparisons and verdicts, computed from arrays of results.

The uncertainty of a difference between two arms has two sources, which are both counted: the seeds (seeds.py) and the
items (items.py).
"""
