"""Source: whatever a user calls their data, as the data set it is."""

from collections.abc import Collection
from pathlib import Path

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.data import audiocraft, shards, stable_audio
from cadenza.data.arrays import ArrayClips, Arrays, arrays_in, is_arrays
from cadenza.data.clips import Clips
from cadenza.data.encoded import EncodedClips
from cadenza.data.items import Report, ToItem
from cadenza.data.manifest import FILE, Manifest, audio_under, build
from cadenza.dsp.files import SUFFIXES

Source = str | Path | Manifest | Arrays


def dataset(
    source: Source, codec: Codec, *, seconds: float, seed: int = 0, ids: Collection[str] | None = None,
    to_item: ToItem | None = None,
) -> tuple[Clips | EncodedClips | ArrayClips, Report]:  # fmt: skip
    """Segments of a source that fit a codec, and a report that names what is broken in it."""
    grid, spec = codec.grid, codec.spec
    frames = max(1, round(seconds * grid.frame_rate))
    if isinstance(source, str | Path):
        if is_store(source):
            return EncodedClips(source, frames=frames, seed=seed, ids=ids, codec=codec, to_item=to_item), Report()
        source, report = opened(source)
    else:
        report = Report(read=len(source.clips))
    if isinstance(source, Arrays):
        return ArrayClips(source, frames=frames, grid=grid, seed=seed, ids=ids, to_item=to_item), report
    same = {"seconds": seconds, "sample_rate": spec.sample_rate, "channels": spec.channels}
    return Clips(source, **same, seed=seed, ids=ids, to_item=to_item), report


def is_encoded(source: Source) -> bool:
    """Whether a source is of codes or latents and not of audio."""
    return isinstance(source, Arrays) or (isinstance(source, str | Path) and (is_store(source) or _of_arrays(Path(source))))


def is_store(path: str | Path) -> bool:
    """Whether a path is an encoded store: a folder of shards, or a packed file."""
    path = Path(path)
    return path.suffix == ".safetensors" or next(path.glob("shard-*.safetensors"), None) is not None


def opened(path: str | Path) -> tuple[Manifest | Arrays, Report]:
    """The clips a path stands for, of audio or of arrays: what `manifest_of` reads, a config, or a folder of arrays."""
    path = Path(path)
    if stable_audio.kind(path) is not None:
        return stable_audio.read(path)
    if _of_arrays(path):
        arrays = arrays_in(path)
        return arrays, Report(read=len(arrays.clips))
    return manifest_of(path)


def manifest_of(path: str | Path) -> tuple[Manifest, Report]:
    """The clips of audio a path stands for: a manifest, ours or AudioCraft's, a dataset config, shards, or a folder.

    Of a folder, the manifest in it, or the shards in it, or else all audio there.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of audio, a manifest or an encoded store")
    if path.is_dir():
        listed = next((path / name for name in (FILE, *audiocraft.FILES) if (path / name).exists()), None)
        return _folder(path) if listed is None else manifest_of(listed)
    if path.suffix == ".tar":
        return shards.read([path])
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path}: one audio file; give the folder it is in, or a manifest")
    if stable_audio.kind(path) is not None:
        found, report = stable_audio.read(path)
        if isinstance(found, Manifest):
            return found, report
        raise DataError(f"{path}: names encoded clips, and this needs audio; give a folder of audio or a manifest")
    manifest = audiocraft.read(path) if audiocraft.is_audiocraft(path) else Manifest.read(path)
    return manifest, Report(read=len(manifest))


def _folder(path: Path) -> tuple[Manifest, Report]:
    tars = shards.shards_in(path)
    if not tars:
        return build(path)
    if loose := audio_under(path):
        raise DataError(f"{path}: holds {len(tars)} shards and {len(loose)} loose audio files; keep them in two folders")
    return shards.read(tars)


def _of_arrays(path: Path) -> bool:
    """Whether a path is a folder of encoded clips and of nothing else, or a config that names some."""
    if not path.is_dir():
        return stable_audio.kind(path) == "pre_encoded"
    other = any((path / name).exists() for name in (FILE, *audiocraft.FILES)) or shards.shards_in(path)
    return not other and is_arrays(path) and not audio_under(path)
