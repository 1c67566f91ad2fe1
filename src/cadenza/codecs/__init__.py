"""One file per codec; the file's name is its `type`."""
