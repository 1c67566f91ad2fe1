"""Foundations used by all packages: specs, types, checkpoints, devices and errors."""
