"""Items and manifests, datasets of audio or codes, resumable loading, the procedural corpus."""
