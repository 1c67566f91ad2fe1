"""Training tasks, one file each; the name of the file is the `type` of the task."""
