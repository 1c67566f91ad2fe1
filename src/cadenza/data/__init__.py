"""Items, manifests, datasets, encoded stores and the procedural corpus."""
