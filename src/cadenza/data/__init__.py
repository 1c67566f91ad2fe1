"""Items and manifests, datasets of audio or codes, resumable loading."""
