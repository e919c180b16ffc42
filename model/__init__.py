"""The model: one forward path, and one small class for each variant of each factor."""
