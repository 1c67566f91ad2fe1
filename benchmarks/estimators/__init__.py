"""Training of the bundled estimators."""
