"""What a run is, what a study is, what it costs, and what it may be compared with."""
