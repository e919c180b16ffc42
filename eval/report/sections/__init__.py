"""The sections of a report, one in each file; their order: eval/report/contents.py."""
