"""Open the path or object that a user passes as data."""

from collections.abc import Collection
from pathlib import Path

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.data import audiocraft_manifest, stable_audio_dataset, webdataset
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.encoded_dataset import EncodedDataset, PreEncodedDataset, PreEncodedFolder, is_pre_encoded, scan_pre_encoded
from cadenza.data.items import ReadReport, ToItem
from cadenza.data.manifest import MANIFEST_FILE, Manifest, list_audio_files, scan_folder
from cadenza.dsp.audio_io import SUFFIXES

Source = str | Path | Manifest | PreEncodedFolder
_MANIFEST_FILES = (MANIFEST_FILE, *audiocraft_manifest.AUDIOCRAFT_FILES)


def open_dataset(
    source: Source, codec: Codec, *, seconds: float, seed: int = 0, ids: Collection[str] | None = None,
    to_item: ToItem | None = None,
) -> tuple[AudioDataset | EncodedDataset | PreEncodedDataset, ReadReport]:  # fmt: skip
    """Return a dataset of segments of `seconds` that fit a codec, and a report of broken files."""
    frame_format, spec = codec.frame_format, codec.spec
    frames = max(1, round(seconds * frame_format.frame_rate))
    if isinstance(source, str | Path):
        if is_encoded_store(source):
            return EncodedDataset(source, frames=frames, seed=seed, ids=ids, codec=codec, to_item=to_item), ReadReport()
        source, report = open_source(source)
    else:
        report = ReadReport(read=len(source.clips))
    if isinstance(source, PreEncodedFolder):
        return PreEncodedDataset(source, frames=frames, frame_format=frame_format, seed=seed, ids=ids, to_item=to_item), report
    audio_format = {"seconds": seconds, "sample_rate": spec.sample_rate, "channels": spec.channels}
    return AudioDataset(source, **audio_format, seed=seed, ids=ids, to_item=to_item), report


def is_encoded(source: Source) -> bool:
    """Return whether a source contains codes or latents, not audio."""
    if isinstance(source, str | Path):
        return is_encoded_store(source) or _contains_only_arrays(Path(source))
    return isinstance(source, PreEncodedFolder)


def is_encoded_store(path: str | Path) -> bool:
    """Return whether a path is an encoded store: a folder of shards, or the file of a single shard."""
    path = Path(path)
    return path.suffix == ".safetensors" or next(path.glob("shard-*.safetensors"), None) is not None


def load_manifest(path: str | Path) -> tuple[Manifest, ReadReport]:
    """Return the audio clips of a path that `open_source` accepts; raise DataError if its clips are encoded."""
    source, report = open_source(path)
    if not isinstance(source, Manifest):
        raise DataError(f"{path}: lists encoded clips, but audio is needed; use a folder of audio or a manifest")
    return source, report


def open_source(path: str | Path) -> tuple[Manifest | PreEncodedFolder, ReadReport]:
    """Return the clips of a manifest (ours or AudioCraft's), a dataset config, shards, or a folder of audio or arrays.

    A folder is read by its manifest, or its shards, or else by all audio files in it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; use a folder of audio, a manifest or an encoded store")
    if stable_audio_dataset.dataset_type(path) is not None:
        return stable_audio_dataset.load_dataset_config(path)
    if _contains_only_arrays(path):
        arrays = scan_pre_encoded(path)
        return arrays, ReadReport(read=len(arrays.clips))
    if path.is_dir():
        if listed := [path / name for name in _MANIFEST_FILES if (path / name).exists()]:
            return open_source(listed[0])
        if not (shards := webdataset.list_shards(path)):
            return scan_folder(path)
        if loose := list_audio_files(path):
            raise DataError(f"{path}: contains {len(shards)} shards and {len(loose)} audio files; use a folder for each kind")
        return webdataset.load_shards(shards)
    if path.suffix == ".tar":
        return webdataset.load_shards([path])
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path}: is one audio file; use its folder, or a manifest")
    is_audiocraft = audiocraft_manifest.is_audiocraft(path)
    manifest = audiocraft_manifest.load_audiocraft_manifest(path) if is_audiocraft else Manifest.load(path)
    return manifest, ReadReport(read=len(manifest))


def _contains_only_arrays(path: Path) -> bool:
    """Return whether a path is a folder of encoded clips only, or a config that lists some."""
    if not path.is_dir():
        return stable_audio_dataset.dataset_type(path) == "pre_encoded"
    other = any((path / name).exists() for name in _MANIFEST_FILES) or webdataset.list_shards(path)
    return not other and is_pre_encoded(path) and not list_audio_files(path)
