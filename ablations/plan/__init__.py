"""Plans: what a study will cost and which differences it can detect, before anything is run. Imports no torch."""
