"""The comparison of arms: what may be compared, the comparisons, by which criteria they decide, and all findings of a
study."""
