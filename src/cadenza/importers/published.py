"""Released models that can be loaded: their names, licences and shapes. MusicGen is arXiv:2306.05284, AudioGen 2209.15352."""

from dataclasses import dataclass

TEXTS = {"google-t5/t5-base": (768, 109_628_544), "google-t5/t5-large": (1024, 334_939_648)}  # width, parameters of the encoder
CODECS = {16000: 56_819_138, 24000: 14_851_810, 32000: 56_884_674, 48000: 14_856_294}  # by sample rate: without codebooks


@dataclass(frozen=True)
class Language:
    """A language model over codes, each block of which attends to the tokens of a T5."""

    width: int
    depth: int
    heads: int
    sides: int = 1  # 2: left and right are codes of their own
    bins: int = 2048
    text: str = "google-t5/t5-base"
    seconds: int = 30

    @property
    def codebooks(self) -> int:
        return 4 * self.sides

    @property
    def parameters(self) -> int:
        """Those of the language model and of the projection of the text."""
        d = self.width
        block = (4 + 4 + 2 * 4) * d * d + 3 * 2 * d  # attention to itself and to the text, feed-forward, norms
        ends = self.codebooks * (2 * self.bins + 1) * d + 2 * d  # embeddings with the special id, heads, the last norm
        return self.depth * block + ends + (TEXTS[self.text][0] + 1) * d


@dataclass(frozen=True)
class Published:
    """A model in the hub; a codec alone has no language model."""

    licence: str
    layout: str  # whose files these are
    about: str
    sample_rate: int
    language: Language | None = None

    @property
    def parameters(self) -> int:
        """Those of all parts, the text encoder included."""
        language = self.language
        return CODECS[self.sample_rate] + (language.parameters + TEXTS[language.text][1] if language else 0)


_SIZES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}


def _musicgen(size: str, sides: int) -> Published:
    about = f"text to music, 32 kHz {'stereo' if sides == 2 else 'mono'}"
    return Published("CC-BY-NC-4.0", "transformers", about, 32000, Language(*_SIZES[size], sides=sides))


_SOUNDS = Language(*_SIZES["medium"], text="google-t5/t5-large", seconds=10)
MODELS = {
    **{f"facebook/musicgen-{size}": _musicgen(size, 1) for size in _SIZES},
    **{f"facebook/musicgen-stereo-{size}": _musicgen(size, 2) for size in _SIZES},
    "facebook/audiogen-medium": Published("CC-BY-NC-4.0", "AudioCraft", "text to sounds, 16 kHz mono", 16000, _SOUNDS),
    "facebook/encodec_24khz": Published("MIT", "transformers", "codec, 24 kHz mono, causal", 24000),
    "facebook/encodec_32khz": Published("CC-BY-NC-4.0", "transformers", "codec, 32 kHz mono, of MusicGen", 32000),
    "facebook/encodec_48khz": Published("MIT", "transformers", "codec, 48 kHz stereo", 48000),
}
