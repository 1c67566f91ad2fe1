"""The estimators as they were fixed: bundled weights whose hash is on record."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.core.files import atomic_write
from cadenza.dsp.audio import Audio
from cadenza.evaluation.estimates import Estimate, decode_outputs
from cadenza.evaluation.features import dominant_pitch_class, extract_features
from cadenza.evaluation.network import EstimatorNet
from cadenza.evaluation.rhythm import onset_strength, pick_onsets, track_beats
from cadenza.evaluation.soundness import last_sound_seconds

FOLDER = Path(__file__).parent / "weights"
_WEIGHTS, _RECORD = "estimators.safetensors", "estimators.json"


@dataclass(frozen=True)
class AttributeEstimator:
    """A trained network, what its family answers mean and from which probability on they count."""

    net: EstimatorNet
    families: tuple[str, ...]
    thresholds: Tensor
    sha256: str = ""

    @torch.inference_mode()
    def __call__(self, audio: Audio, progress: Callable[[int], None] | None = None) -> list[Estimate]:
        """What is heard in every clip, each by itself."""
        found = []
        for done, clip in enumerate(audio, 1):
            heard = extract_features(clip)
            estimate = decode_outputs(self.net(heard), heard.lengths.tolist(), self.thresholds)[0]
            strength = onset_strength(heard.bands[0])
            found.append(
                replace(
                    estimate,
                    chroma=dominant_pitch_class(heard.pitch[0]),
                    beats=track_beats(strength, estimate.tempo),
                    onsets=pick_onsets(strength),
                    seconds=last_sound_seconds(clip.wave[0], clip.sample_rate),
                )
            )
            if progress is not None:
                progress(done)
        return found


def load_estimators(folder: Path = FOLDER) -> AttributeEstimator:
    """The estimators in a folder, the bundled ones by default; CheckpointError if a byte of the weights is not as recorded."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        data = (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: the estimators cannot be read: {error}; install the package again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: sha256 is {found}, but {_RECORD} says {record['sha256']}: "
            "scores of changed estimators compare with nothing; restore the file"
        )
    net = EstimatorNet(len(record["families"]), width=record["width"], folded=record["folded"])
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load(data).items()})
    return AttributeEstimator(net.eval(), tuple(record["families"]), torch.tensor(record["thresholds"]), found)


def save_estimators(estimators: AttributeEstimator, folder: Path, *, notes: dict[str, Any]) -> str:
    """Writes weights as float16 with a record of their hash and of how they were made; returns the hash."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in estimators.net.state_dict().items()}
    data = save({name: value.contiguous() for name, value in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    record = {
        "sha256": digest,
        "families": list(estimators.families),
        "thresholds": [round(x, 3) for x in estimators.thresholds.tolist()],
        "width": estimators.net.width,
        "folded": estimators.net.folded,
        **notes,
    }
    with atomic_write(folder / _WEIGHTS) as file:
        file.write(data)
    with atomic_write(folder / _RECORD) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    return digest
