"""What a study will cost and what it can show, before anything is run. No torch."""
