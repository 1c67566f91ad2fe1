"""The melody of MusicGen in other libraries' configs: what of a recording is heard, and how it is laid out in a prefix."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.core.pretrained import read_json_object
from cadenza.importers.section import ConfigReader

MELODY = "melody"  # how it is called here; AudioCraft says 'self_wav'
_FEATURES = ("processor_config.json", "preprocessor_config.json")  # of transformers 5, and of those before
_KEPT = "vocals+other"  # stems of which AudioCraft hears the chroma


def chroma_spec_from_transformers(folder: Path, *, bins: int, frames: int, width: int, mistakes: list[str]) -> dict[str, Any]:
    """The chroma of a model, by the config of its feature extractor where there is one, of which the library has defaults.

    What it is given is not separated: that is left to whoever calls it.
    """
    path = next((path for name in _FEATURES if (path := folder / name).exists()), None)
    data = {} if path is None else read_json_object(path)
    section = ConfigReader(data.get("feature_extractor", data), source=str(path or folder), mistakes=mistakes)
    section.ignore(["feature_extractor_type", "processor_class", "feature_size", "n_samples", "return_attention_mask"])
    section.ignore(["stem_indices", "auto_map", "tokenizer"])  # of what a separator gave
    section.require_value("padding_side", "right")
    section.require_value("padding_value", 0.0)
    section.require_value("num_chroma", bins, None, why="is not the num_chroma of the model")
    spec = {
        "type": "chroma",
        "output_dim": width,
        "sample_rate": section.get("sampling_rate", int, 32000),
        "window": section.get("n_fft", int, 16384),
        "hop": section.get("hop_length", int, 4096),
        "seconds": section.get("chunk_length", (int, float), 30),
        "bins": bins,
        "max_frames": frames,
        "pad_to": "longest",
        "null_embedding": "silence",
        "project": "auto",
    }
    section.reject_unread()
    return spec


def chroma_spec_from_audiocraft(chroma: ConfigReader, *, seconds: float, width: int) -> dict[str, Any]:
    """The chroma of a package as its library runs it: cut or repeated to a segment of training, no position masked."""
    chroma.ignore(["match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path", "device", "duration"])
    for key in ("nfft", "winlen"):
        chroma.require_value(key, None)
    chroma.require_value("norm", torch.inf)
    rate, window = chroma.get("sample_rate", int), 2 ** chroma.get("radix2_exp", int, 12)
    hop = chroma.get("winhop", (int, type(None)), None) or window // 4
    spec = {
        "type": "chroma",
        "output_dim": width,
        "sample_rate": rate,
        "window": window,
        "hop": hop,
        "bins": chroma.get("n_chroma", int, 12),
        "one_hot": chroma.get("argmax", bool, False),
        "max_frames": 1 + max(int(rate * seconds), window) // max(hop, 1),
        "pad_to": "longest",
        "null_embedding": "silence",
        "stems": _KEPT,
    }
    chroma.reject_unread()
    return spec


def feature_extractor_config(spec: Any) -> dict[str, Any]:
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


def unsupported_settings(spec: Any) -> list[str]:
    """What of a chroma has no place in transformers."""
    lacks = {
        "frames: must be given, as there sounds are cut or repeated": spec.max_frames is None,
        f"short: '{spec.pad_mode}'; there short sounds are repeated": spec.pad_mode != "repeat",
        "one_hot: there only the strongest pitch class counts": not spec.one_hot,
        f"absent: '{spec.null_embedding}'; there no melody is silence": spec.null_embedding != "silence",
        "project: there is no projection where there are as many pitch classes as the model is wide": spec.bins
        == spec.output_dim
        and spec.project == "always",
    }
    return [what for what, so in lacks.items() if so]


def export_warnings(spec: Any) -> list[str]:
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
    seconds = spec.max_frames * spec.hop / spec.sample_rate - 1 if spec.seconds is None else spec.seconds
    return max(1, math.ceil(seconds))


def drop_stft_window(held: dict[str, Tensor], spec: Any, *, source: str) -> dict[str, Tensor]:
    """The weights without the window of the spectrum, which must be the one that is computed."""
    held = dict(held)
    window = held.pop("chroma.spec.window", None)
    if window is not None and not (
        window.shape == (spec.window,) and torch.allclose(window.float(), torch.hann_window(spec.window), atol=1e-3)
    ):
        raise CheckpointError(f"{source}: chroma.spec.window is not the Hann window of {spec.window} samples; export it again")
    return held
