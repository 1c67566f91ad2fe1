"""Source: whatever a user calls their data, as the data set it is."""

from collections.abc import Collection
from pathlib import Path

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.data import audiocraft_manifest, stable_audio_dataset, webdataset
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.encoded_dataset import EncodedDataset, PreEncodedDataset, PreEncodedFolder, is_pre_encoded, scan_pre_encoded
from cadenza.data.items import ReadReport, ToItem
from cadenza.data.manifest import FILE, Manifest, list_audio_files, scan_folder
from cadenza.dsp.audio_io import SUFFIXES

Source = str | Path | Manifest | PreEncodedFolder


def open_dataset(
    source: Source, codec: Codec, *, seconds: float, seed: int = 0, ids: Collection[str] | None = None,
    to_item: ToItem | None = None,
) -> tuple[AudioDataset | EncodedDataset | PreEncodedDataset, ReadReport]:  # fmt: skip
    """Segments of a source that fit a codec, and a report that names what is broken in it."""
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
    same = {"seconds": seconds, "sample_rate": spec.sample_rate, "channels": spec.channels}
    return AudioDataset(source, **same, seed=seed, ids=ids, to_item=to_item), report


def is_encoded(source: Source) -> bool:
    """Whether a source is of codes or latents and not of audio."""
    return isinstance(source, PreEncodedFolder) or (
        isinstance(source, str | Path) and (is_encoded_store(source) or _of_arrays(Path(source)))
    )


def is_encoded_store(path: str | Path) -> bool:
    """Whether a path is an encoded store: a folder of shards, or a packed file."""
    path = Path(path)
    return path.suffix == ".safetensors" or next(path.glob("shard-*.safetensors"), None) is not None


def open_source(path: str | Path) -> tuple[Manifest | PreEncodedFolder, ReadReport]:
    """The clips a path stands for, of audio or of arrays: what `manifest_of` reads, a config, or a folder of arrays."""
    path = Path(path)
    if stable_audio_dataset.dataset_type(path) is not None:
        return stable_audio_dataset.load_dataset_config(path)
    if _of_arrays(path):
        arrays = scan_pre_encoded(path)
        return arrays, ReadReport(read=len(arrays.clips))
    return load_manifest(path)


def load_manifest(path: str | Path) -> tuple[Manifest, ReadReport]:
    """The clips of audio a path stands for: a manifest, ours or AudioCraft's, a dataset config, shards, or a folder.

    Of a folder, the manifest in it, or the shards in it, or else all audio there.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of audio, a manifest or an encoded store")
    if path.is_dir():
        listed = next((path / name for name in (FILE, *audiocraft_manifest.FILES) if (path / name).exists()), None)
        return _folder(path) if listed is None else load_manifest(listed)
    if path.suffix == ".tar":
        return webdataset.load_shards([path])
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path}: one audio file; give the folder it is in, or a manifest")
    if stable_audio_dataset.dataset_type(path) is not None:
        found, report = stable_audio_dataset.load_dataset_config(path)
        if isinstance(found, Manifest):
            return found, report
        raise DataError(f"{path}: names encoded clips, and this needs audio; give a folder of audio or a manifest")
    manifest = (
        audiocraft_manifest.load_audiocraft_manifest(path) if audiocraft_manifest.is_audiocraft(path) else Manifest.read(path)
    )
    return manifest, ReadReport(read=len(manifest))


def _folder(path: Path) -> tuple[Manifest, ReadReport]:
    tars = webdataset.list_shards(path)
    if not tars:
        return scan_folder(path)
    if loose := list_audio_files(path):
        raise DataError(f"{path}: holds {len(tars)} shards and {len(loose)} loose audio files; keep them in two folders")
    return webdataset.load_shards(tars)


def _of_arrays(path: Path) -> bool:
    """Whether a path is a folder of encoded clips and of nothing else, or a config that names some."""
    if not path.is_dir():
        return stable_audio_dataset.dataset_type(path) == "pre_encoded"
    other = any((path / name).exists() for name in (FILE, *audiocraft_manifest.FILES)) or webdataset.list_shards(path)
    return not other and is_pre_encoded(path) and not list_audio_files(path)
