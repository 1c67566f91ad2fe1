"""Signals: audio files, resampling, spectra, loudness; no models."""
