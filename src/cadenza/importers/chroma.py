"""The melody of MusicGen in other libraries' configs: what of a recording is heard, and how it is laid out in a prefix."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.core.pretrained import mapping
from cadenza.importers.section import Section

MELODY = "melody"  # how it is called here; AudioCraft says 'self_wav'
_FEATURES = ("processor_config.json", "preprocessor_config.json")  # of transformers 5, and of those before
_KEPT = "vocals+other"  # stems of which AudioCraft hears the chroma


def of_transformers(folder: Path, *, bins: int, frames: int, width: int, mistakes: list[str]) -> dict[str, Any]:
    """The chroma of a model, by the config of its feature extractor where there is one, of which the library has defaults.

    What it is given is not separated: that is left to whoever calls it.
    """
    path = next((path for name in _FEATURES if (path := folder / name).exists()), None)
    data = {} if path is None else mapping(path)
    section = Section(data.get("feature_extractor", data), source=str(path or folder), mistakes=mistakes)
    section.without_effect(["feature_extractor_type", "processor_class", "feature_size", "n_samples", "return_attention_mask"])
    section.without_effect(["stem_indices", "auto_map", "tokenizer"])  # of what a separator gave
    section.expect("padding_side", "right")
    section.expect("padding_value", 0.0)
    section.expect("num_chroma", bins, None, why="is not the num_chroma of the model")
    spec = {
        "type": "chroma",
        "width": width,
        "sample_rate": section.take("sampling_rate", int, 32000),
        "window": section.take("n_fft", int, 16384),
        "hop": section.take("hop_length", int, 4096),
        "seconds": section.take("chunk_length", (int, float), 30),
        "bins": bins,
        "frames": frames,
        "pad_to": "longest",
        "absent": "silence",
        "project": "auto",
    }
    section.all_seen()
    return spec


def of_audiocraft(chroma: Section, *, seconds: float, width: int) -> dict[str, Any]:
    """The chroma of a package as its library runs it: cut or repeated to a segment of training, no position masked."""
    chroma.without_effect(["match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path", "device", "duration"])
    for key in ("nfft", "winlen"):
        chroma.expect(key, None)
    chroma.expect("norm", torch.inf)
    rate, window = chroma.take("sample_rate", int), 2 ** chroma.take("radix2_exp", int, 12)
    hop = chroma.take("winhop", (int, type(None)), None) or window // 4
    spec = {
        "type": "chroma",
        "width": width,
        "sample_rate": rate,
        "window": window,
        "hop": hop,
        "bins": chroma.take("n_chroma", int, 12),
        "one_hot": chroma.take("argmax", bool, False),
        "frames": 1 + max(int(rate * seconds), window) // max(hop, 1),
        "pad_to": "longest",
        "absent": "silence",
        "stems": _KEPT,
    }
    chroma.all_seen()
    return spec


def preprocessor_for(spec: Any) -> dict[str, Any]:
    """The config of transformers' feature extractor for a chroma."""
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "feature_size": spec.bins,
        "num_chroma": spec.bins,
        "sampling_rate": spec.sample_rate,
        "n_fft": spec.window,
        "hop_length": spec.hop,
        "chunk_length": _seconds(spec),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "stem_indices": [3, 2],
    }


def impossible(spec: Any) -> list[str]:
    """What of a chroma has no place in transformers."""
    lacks = {
        "frames: must be given, as there sounds are cut or repeated": spec.frames is None,
        f"short: '{spec.short}'; there short sounds are repeated": spec.short != "repeat",
        "one_hot: there only the strongest pitch class counts": not spec.one_hot,
        f"absent: '{spec.absent}'; there no melody is silence": spec.absent != "silence",
        "project: there is no projection where there are as many pitch classes as the model is wide": spec.bins == spec.width
        and spec.project == "always",
    }
    return [what for what, so in lacks.items() if so]


def lost(spec: Any) -> list[str]:
    """What there is to say of a chroma in transformers."""
    notes = []
    if spec.stems is not None:
        notes.append(
            f"note: transformers separates nothing; to hear {'+'.join(spec.stems)}, give its processor what Demucs made"
        )
    if spec.seconds != _seconds(spec):
        notes.append(f"note: a melody is cut to {_seconds(spec)} s there before it is heard")
    if spec.pad_to == "own":
        notes.append("note: in a batch a melody ends in silence there, to be as long as the longest; single ones agree")
    return notes


def _seconds(spec: Any) -> int:
    """Whole seconds to which sounds are cut: enough for all frames where none are said."""
    seconds = spec.frames * spec.hop / spec.sample_rate - 1 if spec.seconds is None else spec.seconds
    return max(1, math.ceil(seconds))


def without_window(held: dict[str, Tensor], spec: Any, *, source: str) -> dict[str, Tensor]:
    """The weights without the window of the spectrum, which must be the one that is computed."""
    held = dict(held)
    window = held.pop("chroma.spec.window", None)
    if window is not None and not (
        window.shape == (spec.window,) and torch.allclose(window.float(), torch.hann_window(spec.window), atol=1e-3)
    ):
        raise CheckpointError(f"{source}: chroma.spec.window is not the Hann window of {spec.window} samples; export it again")
    return held
