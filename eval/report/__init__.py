"""The report of a study: reads run directories, writes a record. The same run directories give the same bytes."""
