"""Manifests: JSON lines that list audio clips; large metadata may stay in sidecar files beside the audio."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import ReadReport, ToItem, compose, select_holdout
from cadenza.dsp import audio_io
from cadenza.dsp.byte_range import ByteRange

FILE = "manifest.jsonl"
_OWN = ("id", "audio", "seconds", "sample_rate", "channels")


@dataclass(frozen=True)
class ManifestClip:
    """One line of a manifest; what it does not say of the audio is None and read from the file's header."""

    id: str
    audio: Path | ByteRange
    seconds: float | None
    sample_rate: int | None
    channels: int | None
    inline: dict[str, Any]
    weight: float = 1.0  # how often it is drawn, beside others of its length; 0 is never

    def info(self) -> audio_io.AudioFileInfo:
        """Rate, channels and length, from the manifest where it says them."""
        if self.seconds is None or self.sample_rate is None or self.channels is None:
            return audio_io.probe(self.audio)
        return audio_io.AudioFileInfo(self.sample_rate, self.channels, round(self.seconds * self.sample_rate))

    def metadata(self) -> dict[str, Any]:
        """What is known of the clip: its sidecars, then what the manifest says, which counts more."""
        return {**(read_sidecars(self.audio) if isinstance(self.audio, Path) else {}), **self.inline}


@dataclass(frozen=True)
class Manifest:
    """Clips in a fixed order, each id once, and what makes items of their metadata where there is such a function."""

    folder: Path  # that the paths in the file start from
    clips: Sequence[ManifestClip]
    to_item: ToItem | None = None
    random_crop: bool = True  # otherwise only the beginning of each clip is used

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The manifest in a file; opens none of the audio."""
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable manifest: {error}") from None
        clips = [_clip(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not clips:
            raise DataError(f'{path}: lists no clip; a line is like {{"audio": "a.wav", "prompt": "slow piano"}}')
        check_unique_ids(clips, str(path))
        return cls(path.parent, clips)

    def with_transform(self, to_item: ToItem) -> Self:
        """The same clips, with `to_item` made of what is an item so far."""
        return replace(self, to_item=compose(self.to_item, to_item))

    def write(self, path: str | Path) -> None:
        """The manifest as a file, whole or not at all, with paths relative to its folder."""
        path = Path(path)
        lines = []
        for clip in self.clips:
            if isinstance(clip.audio, ByteRange):
                raise DataError(f"{clip.audio}: is inside another file, which a manifest cannot say; name the shards instead")
            audio = Path(os.path.relpath(clip.audio.absolute(), path.absolute().parent)).as_posix()
            own = {"id": clip.id, "audio": audio, "seconds": clip.seconds, "sample_rate": clip.sample_rate}
            line = {**own, "channels": clip.channels, **clip.inline}
            lines.append(json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False))
        with atomic_write(path, DataError) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def split(self, count: int) -> tuple["Manifest", "Manifest"]:
        """The manifest without, and with only, `count` clips held out by the hash of their ids."""
        if not 0 <= count < len(self):
            raise DataError(f"cannot hold out {count} of {len(self)} clips; leave at least one to train on")
        out = select_holdout((clip.id for clip in self.clips), count)
        parts = ([clip for clip in self.clips if (clip.id in out) == held] for held in (False, True))
        rest, held = (replace(self, clips=part) for part in parts)
        return rest, held

    def digest(self) -> str:
        """A hash of the ids in order."""
        return hashlib.sha256(json.dumps([clip.id for clip in self.clips]).encode()).hexdigest()


def scan_folder(folder: str | Path) -> tuple[Manifest, ReadReport]:
    """A manifest of all audio under a folder, in order of path, and a report that names what is broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; give one with audio in it")
    clips, report = [], ReadReport()
    for path in list_audio_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            header = audio_io.probe(path)
            read_sidecars(path)
        except (AudioError, DataError) as error:
            report.add_broken(path.relative_to(folder).as_posix(), str(error))
            continue
        clips.append(ManifestClip(name, path, header.seconds, header.sample_rate, header.channels, {}))
    check_unique_ids(clips, str(folder))
    report.read = len(clips)
    if not clips:
        raise DataError(f"{folder}: no usable audio ({', '.join(audio_io.SUFFIXES)}) in it: {report}")
    return Manifest(folder, clips), report


def read_sidecars(audio: Path) -> dict[str, Any]:
    """The metadata beside an audio file: the mapping in its `.json`, and its `.txt` as `prompt`."""
    found: dict[str, Any] = {}
    try:
        if (text := _beside(audio, ".txt")) is not None and text.strip():
            found["prompt"] = " ".join(text.split())
        if (text := _beside(audio, ".json")) is not None:
            found |= _mapping(json.loads(text), audio.with_suffix(".json"))
    except (OSError, ValueError) as error:
        raise DataError(f"{audio}: its sidecar cannot be read: {error}; mend or remove it") from None
    return {key: value for key, value in found.items() if key not in ("id", "audio")}


def _beside(audio: Path, suffix: str) -> str | None:
    try:
        return audio.with_suffix(suffix).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _mapping(data: Any, source: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DataError(f"{source}: must hold a mapping from id to value, not a {type(data).__name__}")
    return data


def list_audio_files(folder: Path) -> list[Path]:
    """All audio in a folder and its subfolders, hidden ones left out, in order of path."""
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, n) for n in names if Path(n).suffix.lower() in audio_io.SUFFIXES and not n.startswith(".")]
    return sorted(found)


def _clip(path: Path, number: int, line: str) -> ManifestClip:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("audio"), str):
        foreign = isinstance(data, dict) and "path" in data
        hint = "; read AudioCraft's manifests with cadenza.data.audiocraft_manifest" if foreign else ""
        raise DataError(f'{path}:{number}: a line must be a mapping with the path of its "audio"{hint}')
    for key, kinds in {"seconds": (int, float), "sample_rate": (int,), "channels": (int,)}.items():
        if data.get(key) is not None and (not isinstance(data[key], kinds) or not 0 < data[key] < math.inf):
            raise DataError(f"{path}:{number}: '{key}' must be a positive number, got {data[key]!r}")
    name = str(data.get("id", Path(data["audio"]).with_suffix("").as_posix()))
    inline = {key: value for key, value in data.items() if key not in _OWN}
    facts: dict[str, Any] = {key: data.get(key) for key in ("seconds", "sample_rate", "channels")}
    return ManifestClip(id=name, audio=path.parent / data["audio"], inline=inline, **facts)


def check_unique_ids(clips: Iterable[ManifestClip], source: str | Path) -> None:
    """DataError that names both clips unless each id is there once."""
    seen: dict[str, Path | ByteRange] = {}
    for clip in clips:
        if clip.id in seen:
            raise DataError(f"{source}: two clips have the id '{clip.id}': {seen[clip.id]} and {clip.audio}; rename one")
        seen[clip.id] = clip.audio
