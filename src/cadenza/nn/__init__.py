"""Bare modules with plain arguments."""
