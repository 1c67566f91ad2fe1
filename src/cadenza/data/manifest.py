"""Manifests: JSON lines that list audio clips; metadata may also be in sidecar files next to the audio."""

import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import ReadReport, ToItem, compose
from cadenza.dsp import audio_io
from cadenza.dsp.byte_range import ByteRange

MANIFEST_FILE = "manifest.jsonl"
_FILE_KEYS = ("id", "audio", "seconds", "sample_rate", "channels")


@dataclass(frozen=True)
class ManifestClip:
    """One line of a manifest; a field that is None is read from the header of the audio file."""

    id: str
    audio: Path | ByteRange
    seconds: float | None
    sample_rate: int | None
    channels: int | None
    inline: dict[str, Any]  # metadata in the manifest
    weight: float = 1.0  # relative frequency among clips of equal length; 0 = never

    def info(self) -> audio_io.AudioFileInfo:
        """Return sample rate, channels and length, from the manifest if it has them."""
        if self.seconds is None or self.sample_rate is None or self.channels is None:
            return audio_io.probe(self.audio)
        return audio_io.AudioFileInfo(self.sample_rate, self.channels, round(self.seconds * self.sample_rate))

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of sidecars and manifest; the manifest takes precedence."""
        return {**(read_sidecars(self.audio) if isinstance(self.audio, Path) else {}), **self.inline}


@dataclass(frozen=True)
class Manifest:
    """Clips with unique ids in a fixed order, and an optional function that builds their items."""

    folder: Path  # base of relative paths in the file
    clips: Sequence[ManifestClip]
    to_item: ToItem | None = None
    random_crop: bool = True  # False: only the beginning of each clip is used

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a manifest file; no audio is opened."""
        path = Path(path)
        clips = [_parse_clip(source, data, path.parent) for source, data in read_lines(path, "audio")]
        check_unique_ids(clips, path)
        return cls(path.parent, clips)

    def with_transform(self, to_item: ToItem) -> Self:
        """Return a copy that applies `to_item` after the present function."""
        return replace(self, to_item=compose(self.to_item, to_item))

    def write(self, path: str | Path) -> None:
        """Write the manifest atomically, with paths relative to its folder."""
        path = Path(path)
        lines = []
        for clip in self.clips:
            if isinstance(clip.audio, ByteRange):
                raise DataError(f"{clip.audio}: is inside another file, which a manifest cannot list; use the shards instead")
            audio = Path(os.path.relpath(clip.audio.absolute(), path.absolute().parent)).as_posix()
            values = (clip.id, audio, clip.seconds, clip.sample_rate, clip.channels)
            line = {**dict(zip(_FILE_KEYS, values, strict=True)), **clip.inline}
            lines.append(json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False))
        with atomic_write(path, DataError) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def digest(self) -> str:
        """Return a hash of the ids in order."""
        return hashlib.sha256(json.dumps([clip.id for clip in self.clips]).encode()).hexdigest()


def scan_folder(folder: str | Path) -> tuple[Manifest, ReadReport]:
    """Return a manifest of all audio under a folder in order of path, and a report of broken files."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; use a folder of audio")
    clips, report = [], ReadReport()
    for path in list_audio_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            header = audio_io.probe(path)
            read_sidecars(path)
        except (AudioError, DataError) as error:
            report.record_broken(path.relative_to(folder).as_posix(), str(error))
            continue
        clips.append(ManifestClip(name, path, header.seconds, header.sample_rate, header.channels, {}))
    check_unique_ids(clips, folder)
    report.read = len(clips)
    if not clips:
        raise DataError(f"{folder}: no usable audio ({', '.join(audio_io.SUFFIXES)}): {report}")
    return Manifest(folder, clips), report


def read_sidecars(audio: Path) -> dict[str, Any]:
    """Return the metadata in the `.txt` and `.json` next to an audio file."""
    return read_metadata({kind: path for kind in ("txt", "json") if (path := audio.with_suffix(f".{kind}")).exists()})


def read_metadata(files: Mapping[str, Path | ByteRange]) -> dict[str, Any]:
    """Return the mapping in `json`; the text of `txt` is its default `prompt`, and that of `cls` its `class`."""
    metadata: dict[str, Any] = {}
    for extension, name in (("txt", "prompt"), ("cls", "class"), ("json", "")):
        if (file := files.get(extension)) is None:
            continue
        try:
            text = file.read_bytes().decode("utf-8")
            data = json.loads(text) if extension == "json" else {name: " ".join(text.split())} if text.strip() else {}
        except (AudioError, OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}; fix or remove it") from None
        if extension == "cls" and text.strip().lstrip("-").isdecimal():
            data = {name: int(text)}
        metadata |= check_mapping(data, file)
    return without_file_keys(metadata)


def read_json(path: Path, *, fix: str) -> Any:
    """Return the content of a JSON file; raise DataError that ends with `fix`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {fix}") from None


def check_mapping(data: Any, source: object) -> dict[str, Any]:
    """Return parsed JSON unchanged; raise DataError unless it is a mapping."""
    if not isinstance(data, dict):
        raise DataError(f"{source}: expected a mapping from id to value, not a {type(data).__name__}")
    return data


def without_file_keys(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without `id` and `audio`, which the dataset sets."""
    return {key: value for key, value in metadata.items() if key not in ("id", "audio")}


def list_audio_files(folder: Path) -> list[Path]:
    """Return all audio files in a folder and its subfolders in order of path, except hidden ones."""
    paths = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [Path(parent, n) for n in names if Path(n).suffix.lower() in audio_io.SUFFIXES and not n.startswith(".")]
    return sorted(paths)


def read_lines(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the mappings of a file of JSON lines, optionally gzipped, with their location; each has a path under `key`."""
    lines, number = [], 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  # used in the errors below
                if line.strip():
                    lines.append((f"{path}:{number}", line))
    except EOFError:
        raise DataError(f"{path}: cut short after line {number}; download or create it again") from None
    except (OSError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: not a readable manifest, after line {number}: {error}") from None
    if not lines:
        raise DataError(f'{path}: lists no clips. Example line: {{"{key}": "a.wav"}}')
    return [(source, _parse_line(source, line, key)) for source, line in lines]


def _parse_line(source: str, line: str, key: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: not JSON: {error}") from None
    if isinstance(data, dict) and isinstance(data.get(key), str) and data[key]:
        return data
    is_audiocraft = isinstance(data, dict) and "path" in data and key == "audio"
    hint = ". This is AudioCraft's layout; use cadenza.data.audiocraft_manifest" if is_audiocraft else ""
    raise DataError(f'{source}: a line must be a mapping with the path of its audio as "{key}"{hint}')


def check_positive(data: dict[str, Any], kinds: dict[str, tuple[type, ...]], source: str) -> None:
    """Raise DataError unless each value is None or missing, or a positive number of one of its types."""
    for key, types in kinds.items():
        value = data.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types) or not 0 < value < math.inf):
            raise DataError(f"{source}: '{key}' must be a positive number, got {value!r}")


def _parse_clip(source: str, data: dict[str, Any], folder: Path) -> ManifestClip:
    check_positive(data, {"seconds": (int, float), "sample_rate": (int,), "channels": (int,)}, source)
    name = str(data.get("id", Path(data["audio"]).with_suffix("").as_posix()))
    inline = {key: value for key, value in data.items() if key not in _FILE_KEYS}
    return ManifestClip(
        name, folder / data["audio"], data.get("seconds"), data.get("sample_rate"), data.get("channels"), inline
    )


def check_unique_ids(clips: Iterable[ManifestClip], source: str | Path) -> None:
    """Raise DataError that names both clips if an id occurs twice."""
    paths: dict[str, Path | ByteRange] = {}
    for clip in clips:
        if clip.id in paths:
            raise DataError(f"{source}: two clips have the id '{clip.id}': {paths[clip.id]} and {clip.audio}; rename one")
        paths[clip.id] = clip.audio
