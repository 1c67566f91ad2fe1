"""Interfaces: `cadenza.load` and the command line."""
