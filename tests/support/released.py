"""Stand-ins for released models: folders of their names, in their layouts and grids, with few and random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from foreign import PIECES, audiocraft_folder, change, musicgen_folder


def stand_ins(text: str, folder: Path) -> None:
    """Writes into `folder` those that a page names, so that each name is found as a folder."""
    for name, make in MODELS.items():
        if name in text:
            make(folder / name)


def _musicgen(folder: Path, *, melody: bool = False) -> None:
    """The codec's frame format is that of MusicGen: 32 kHz, 50 frames a second of 4 codebooks x 2048."""
    codec = {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048, "target_bandwidths": [2.2]}
    lm = {"vocab_size": 2048, "num_codebooks": 4, "pad_token_id": 2048, "bos_token_id": 2048, "max_position_embeddings": 2048}
    audio, decoder = ({f"{part}__{key}": x for key, x in keys.items()} for part, keys in (("audio", codec), ("decoder", lm)))
    musicgen_folder(folder, melody=melody, text__vocab_size=len(PIECES), **audio, **decoder)
    change(folder / "generation_config.json", max_length=1500)


def _encodec(folder: Path) -> None:
    """24 kHz, 75 frames a second of 32 codebooks x 1024."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    EncodecModel(EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8)).eval().save_pretrained(folder)


def _export(folder: Path) -> None:
    """What AudioCraft's export writes, at 8 kHz, trained on segments of 2 seconds."""
    audiocraft_folder(folder)


MODELS: dict[str, Callable[[Path], None]] = {
    "facebook/musicgen-small": _musicgen,
    "facebook/musicgen-melody": partial(_musicgen, melody=True),
    "facebook/encodec_24khz": _encodec,
    "my-export": _export,
}
