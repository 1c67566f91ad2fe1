"""What others report for the same attributes, on data, estimators and outputs of their own: to be read beside, not against."""

PUBLISHED_RESULTS: dict[str, str] = {
    "melody": "MuseControlLite .64 (melody accuracy)",
    "chroma": "MusicGen-melody .44 (cosine to the reference)",
    "chords": "MusiConGen .73 (majmin)",
    "chord IoU": "JASCO .69",
    "beat": "MusiConGen .79 (F1)",
    "onset": "JASCO .38 (F1, of drums)",
}
