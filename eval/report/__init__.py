"""The report: run directories in, a record out. A pure function of what it reads."""
