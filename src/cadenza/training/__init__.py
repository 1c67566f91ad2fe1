"""One trainer, its tasks, losses, checkpoints and logs."""
