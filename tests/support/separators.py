"""A tiny Demucs with random weights, in the files that its repository in the hub has."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

SOURCES = ["drums", "bass", "other", "vocals"]


def demucs_folder(folder: Path, *, klass: str = "demucs.htdemucs.HTDemucs") -> None:
    """Writes `tiny.yaml` and the net that it lists, for stereo at 8 kHz."""
    from demucs.htdemucs import HTDemucs

    kwargs = {"sources": SOURCES, "channels": 8, "growth": 2, "nfft": 256, "depth": 2, "t_layers": 1, "t_heads": 2}
    kwargs |= {"samplerate": 8000, "segment": 1, "bottom_channels": 8, "dconv_mode": 1}
    torch.manual_seed(0)
    net = HTDemucs(**kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"klass": klass, "args": "[]", "kwargs": json.dumps(kwargs)}
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, folder / "0a1b2c3d.safetensors", said)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"models": ["0a1b2c3d"]}))
