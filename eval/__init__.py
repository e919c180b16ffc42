"""Evaluation of finished runs and reports of studies: reads run directories, writes eval.json and records."""
