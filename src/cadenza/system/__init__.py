"""Parts put together: do they fit, fusion, generation, storage."""
