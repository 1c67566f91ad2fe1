"""Functions that turn a network's outputs into tokens or latents."""
