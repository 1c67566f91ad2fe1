"""The command line: one file per verb, nothing heavy imported before a verb runs."""

CANCELLED = 130  # what a shell says of a program that Ctrl-C ended
