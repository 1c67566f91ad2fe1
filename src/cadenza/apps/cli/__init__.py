"""Command line: one file per command; libraries are imported when a command runs."""

CANCELLED = 130  # exit status after Ctrl-C, as of shells
