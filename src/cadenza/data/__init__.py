"""Items, manifests, datasets of audio or codes, and resumable loading."""
