"""One file per conditioner; the file's name is its `type`."""
