"""Estimator features of labelled clips, computed once and cached in a folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.audio import load_audio
from cadenza.evaluation.estimator_net import BAND_HOP, PITCH_HOP, EstimatorFeatures, extract_features
from cadenza.evaluation.labels import ClipLabels, labelled_clips, labels_from_sidecar

_RATIO = PITCH_HOP // BAND_HOP


@dataclass(frozen=True)
class FeatureDataset:
    """Features of many clips, one after the other along time, with their truths."""

    pitch: np.ndarray  # [frames, rows] float16
    bands: np.ndarray  # [frames * 8, n] float16
    bounds: list[int]  # first pitch frame of each clip, then the end
    truths: list[ClipLabels]

    def __len__(self) -> int:
        return len(self.truths)

    def features(self, i: int) -> tuple[Tensor, Tensor]:
        """Pitch [rows f] and bands [n g] of one clip."""
        first, last = self.bounds[i], self.bounds[i + 1]
        pitch = torch.from_numpy(self.pitch[first:last].astype(np.float32))
        bands = torch.from_numpy(self.bands[first * _RATIO : last * _RATIO].astype(np.float32))
        return pitch.T, bands.T


def load_features(
    manifest: Manifest, families: Sequence[str], *, cache: str | Path, progress: Callable[[int], None] | None = None
) -> FeatureDataset:
    """The clips of a manifest; their features are computed at the first call and read from `cache` later."""
    cache = Path(cache)
    clips, truths = zip(*labelled_clips(manifest), strict=True)
    names = [clip.id for clip in clips]
    index = cache / "index.json"
    if not index.exists() or json.loads(index.read_text())["clips"] != names:
        _compute(clips, names, cache, progress)
    bounds = json.loads(index.read_text())["bounds"]
    lengths = np.diff(bounds).tolist()
    found = [labels_from_sidecar(truth, frames, families=families) for truth, frames in zip(truths, lengths, strict=True)]
    pitch, bands = (np.load(cache / f"{name}.npy", mmap_mode="r") for name in ("pitch", "bands"))
    return FeatureDataset(pitch, bands, bounds, found)


def _compute(clips: Sequence[ManifestClip], names: list[str], cache: Path, progress: Callable[[int], None] | None) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    pitch, bands, bounds = [], [], [0]
    for done, clip in enumerate(clips, 1):
        heard = extract_features(load_audio(clip.audio))
        pitch.append(heard.pitch[0].T.numpy().astype(np.float16))
        bands.append(heard.bands[0].T.numpy().astype(np.float16))
        bounds.append(bounds[-1] + len(pitch[-1]))
        if progress is not None:
            progress(done)
    np.save(cache / "pitch.npy", np.concatenate(pitch))
    np.save(cache / "bands.npy", np.concatenate(bands))
    (cache / "index.json").write_text(json.dumps({"clips": names, "bounds": bounds}))


def collate_features(features: Sequence[tuple[Tensor, Tensor]]) -> EstimatorFeatures:
    """Features of several clips as a batch, padded with zeros."""
    lengths = torch.tensor([pitch.shape[-1] for pitch, _ in features])
    longest = int(lengths.max())
    pitch = torch.zeros(len(features), features[0][0].shape[0], longest)
    bands = torch.zeros(len(features), features[0][1].shape[0], longest * _RATIO)
    for i, (p, b) in enumerate(features):
        pitch[i, :, : p.shape[-1]], bands[i, :, : b.shape[-1]] = p, b
    return EstimatorFeatures(pitch, bands, lengths)
