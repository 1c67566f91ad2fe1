"""Source: whatever a user calls their data, as the data set it is."""

from pathlib import Path

from cadenza.core.errors import DataError
from cadenza.data.items import Report
from cadenza.data.manifest import FILE, Manifest, build
from cadenza.dsp.files import SUFFIXES


def is_store(path: str | Path) -> bool:
    """Whether a path is an encoded store: a folder of shards, or a packed file."""
    path = Path(path)
    return path.suffix == ".safetensors" or next(path.glob("shard-*.safetensors"), None) is not None


def manifest_of(path: str | Path) -> tuple[Manifest, Report]:
    """The clips a path stands for: a manifest, a folder that has one, or else all audio in a folder."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of audio, a manifest or an encoded store")
    if path.is_dir() and not (path / FILE).exists():
        return build(path)
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path}: one audio file; give the folder it is in, or a manifest")
    manifest = Manifest.read(path / FILE if path.is_dir() else path)
    return manifest, Report(read=len(manifest))
