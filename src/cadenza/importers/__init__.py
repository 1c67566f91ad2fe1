"""Other libraries' models, read exactly and written for them; foreign names live here alone."""
