"""Released models that can be loaded: MusicGen (arXiv:2306.05284), MusicGen-Style (2407.12563), AudioGen (2209.15352)."""

from dataclasses import dataclass
from typing import Literal

TEXTS = {"google-t5/t5-base": (768, 109_628_544), "google-t5/t5-large": (1024, 334_939_648)}  # width, parameters of the encoder
CODECS = {16000: 56_819_138, 24000: 14_851_810, 32000: 56_884_674, 48000: 14_856_294}  # by sample rate: without codebooks
MERT = 94_371_712  # parameters used of m-a-p/MERT-v1-95M, the encoder of a style
STYLE = 512  # width of the style's transformer of 8 blocks


@dataclass(frozen=True)
class LMGeometry:
    """Sizes of a codec language model that cross-attends to T5 tokens, or is prefixed by audio and T5 tokens."""

    width: int
    depth: int
    heads: int
    sides: int = 1  # 2: stereo, with separate codes for left and right
    bins: int = 2048
    text: str = "google-t5/t5-base"
    seconds: int = 30
    audio_condition: Literal["", "melody", "style"] = ""

    @property
    def codebooks(self) -> int:
        return 4 * self.sides

    @property
    def parameters(self) -> int:
        """Parameters of the language model and its conditioners, without pretrained encoders."""
        d = self.width
        block = (4 + 4 + 2 * 4) * d * d + 3 * 2 * d  # attention to itself and to the text, feed-forward, norms
        if self.audio_condition:
            block -= 4 * d * d + 2 * d
        ends = self.codebooks * (2 * self.bins + 1) * d + 2 * d  # embeddings with the special id, heads, the last norm
        audio = {"": 0, "melody": 13 * d, "style": 769 * STYLE + 8 * (12 * STYLE + 4) * STYLE + (STYLE + 1) * d}
        return self.depth * block + ends + (TEXTS[self.text][0] + 1) * d + audio[self.audio_condition]


@dataclass(frozen=True)
class PublishedModel:
    """Model in the hub; a codec has no language model."""

    license: str
    layout: str  # library that wrote the files
    about: str
    sample_rate: int
    language: LMGeometry | None = None

    @property
    def parameters(self) -> int:
        """Parameters of all parts, with pretrained encoders."""
        language = self.language
        encoders = 0 if language is None else TEXTS[language.text][1] + (MERT if language.audio_condition == "style" else 0)
        return CODECS[self.sample_rate] + encoders + (language.parameters if language else 0)


_SIZES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}


def _musicgen(size: str, sides: int, audio_condition: Literal["", "melody", "style"] = "") -> PublishedModel:
    inputs = f"text and {audio_condition}" if audio_condition else "text"
    about = f"{inputs} to music, 32 kHz {'stereo' if sides == 2 else 'mono'}"
    layout = "AudioCraft" if audio_condition == "style" else "transformers"
    geometry = LMGeometry(*_SIZES[size], sides=sides, audio_condition=audio_condition)
    return PublishedModel("CC-BY-NC-4.0", layout, about, 32000, geometry)


_SOUNDS = LMGeometry(*_SIZES["medium"], text="google-t5/t5-large", seconds=10)
MODELS = {
    **{f"facebook/musicgen-{size}": _musicgen(size, 1) for size in _SIZES},
    **{f"facebook/musicgen-stereo-{size}": _musicgen(size, 2) for size in _SIZES},
    "facebook/musicgen-melody": _musicgen("medium", 1, "melody"),
    "facebook/musicgen-melody-large": _musicgen("large", 1, "melody"),
    "facebook/musicgen-stereo-melody": _musicgen("medium", 2, "melody"),
    "facebook/musicgen-stereo-melody-large": _musicgen("large", 2, "melody"),
    "facebook/musicgen-style": _musicgen("medium", 1, "style"),
    "facebook/audiogen-medium": PublishedModel("CC-BY-NC-4.0", "AudioCraft", "text to sounds, 16 kHz mono", 16000, _SOUNDS),
    "facebook/encodec_24khz": PublishedModel("MIT", "transformers", "codec, 24 kHz mono, causal", 24000),
    "facebook/encodec_32khz": PublishedModel("CC-BY-NC-4.0", "transformers", "codec, 32 kHz mono, of MusicGen", 32000),
    "facebook/encodec_48khz": PublishedModel("MIT", "transformers", "codec, 48 kHz stereo", 48000),
}
