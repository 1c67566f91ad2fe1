"""One file per task; the file's name is its `type`."""
