"""One file per generator; the file's name is its `type`."""
