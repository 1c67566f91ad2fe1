"""Level: clips made as loud as asked, without clipping."""

import warnings

from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import loudness, normalize


def normalize_loudness(audio: Audio, lufs: float) -> Audio:
    """Each clip at `lufs`, or, with a warning, as near below it as its peaks allow; silence stays silence."""
    clips = []
    for i, clip in enumerate(audio):
        wave = normalize(clip.wave[0].float(), clip.sample_rate, lufs)
        reached = loudness(wave, clip.sample_rate)
        if -70 < reached < lufs - 0.1:
            warnings.warn(f"clip {i + 1} stays at {reached:.1f} LUFS: {lufs:g} would clip its peaks", stacklevel=3)
        clips.append(Audio(wave[None].to(audio.wave), clip.sample_rate))
    return Audio.pad_and_stack(clips)
