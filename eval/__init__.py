"""Evaluation of finished runs, and reports of studies. Reads run directories; writes eval.json and records."""
