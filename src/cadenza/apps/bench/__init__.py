"""Benchmark: ours and the peer, of one geometry, in one run."""
