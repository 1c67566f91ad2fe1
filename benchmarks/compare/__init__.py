"""Side-by-side benchmark of Cadenza and transformers on published geometries with random weights."""
