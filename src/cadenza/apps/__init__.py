"""The doors: the Python face, the command line."""
