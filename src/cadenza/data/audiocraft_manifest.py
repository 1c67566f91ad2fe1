"""AudioCraft manifests: JSON lines of (path, duration, sample_rate, amplitude, weight, info_path), maybe gzipped.

Relative paths start where AudioCraft was run; here they are looked for in the manifest's folder and then in the
current one.
"""

import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cadenza.core.errors import DataError
from cadenza.data.manifest import Manifest, ManifestClip, check_unique_ids, read_sidecars
from cadenza.data.music_metadata import clean_metadata

FILES = ("data.jsonl", "data.jsonl.gz")
LOOKED = 16  # clips of which one must be found, or the paths are wrong
_KNOWN = ("path", "duration", "sample_rate", "amplitude", "weight", "info_path")


@dataclass(frozen=True)
class MusicClip(ManifestClip):
    """A clip whose metadata is cleaned as music's, from `info` (a JSON file or `archive.zip:member`) or its sidecars."""

    info_path: str | None = None

    def metadata(self) -> dict[str, Any]:
        assert isinstance(self.audio, Path)
        beside = read_sidecars(self.audio) if self.info_path is None else _info(self.info_path)
        return clean_metadata({**beside, **self.inline})


def load_audiocraft_manifest(path: str | Path) -> Manifest:
    """The manifest in a file; opens none of the audio, whose files are missed when they are read."""
    path = Path(path)
    clips = [_clip(path, number, line) for number, line in _lines(path) if line.strip()]
    if not clips:
        raise DataError(f'{path}: lists no clip; a line is like {{"path": "a.wav", "duration": 30.0, "sample_rate": 32000}}')
    check_unique_ids(clips, path)
    folder = _folder(path, clips)
    return Manifest(folder, [_placed(clip, folder) for clip in clips])


def is_audiocraft(path: str | Path) -> bool:
    """Whether the first line of a `.jsonl` or `.jsonl.gz` file names its audio as AudioCraft does."""
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    if path.name in FILES or path.suffix == ".gz":
        return True
    with open(path, "rb") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and "path" in first and "audio" not in first


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  # said where the file ends too early
                yield number, line
    except EOFError:
        raise DataError(f"{path}: cut short after line {number}; fetch or make it again") from None
    except (OSError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: not a readable manifest, after line {number}: {error}") from None


def _clip(path: Path, number: int, line: str) -> MusicClip:
    where = f"{path}:{number}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("path"), str) or not data["path"]:
        raise DataError(f'{where}: a line must be a mapping with the "path" of its audio')
    for name, kinds in {"duration": (int, float), "sample_rate": (int,)}.items():
        value = data.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
            raise DataError(f"{where}: '{name}' must be a positive number, got {value!r}")
    weight = 1.0 if data.get("weight") is None else data["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"{where}: 'weight' must be a number of at least 0, got {weight!r}")
    info = data.get("info_path")
    if info is not None and not isinstance(info, str):
        raise DataError(f"{where}: 'info_path' must be a path, or archive.zip:member, got {info!r}")
    inline = {name: value for name, value in data.items() if name not in _KNOWN}
    return MusicClip(
        id=data["path"], audio=Path(data["path"]), seconds=data.get("duration"), sample_rate=data.get("sample_rate"),
        channels=None, inline=inline, weight=float(weight), info_path=info,
    )  # fmt: skip


def _folder(path: Path, clips: list[MusicClip]) -> Path:
    """Where the relative paths start."""
    relative = [clip.audio for clip in clips if isinstance(clip.audio, Path) and not clip.audio.is_absolute()][:LOOKED]
    places = [path.parent, Path.cwd()]
    for place in places:
        if not relative or any((place / audio).exists() for audio in relative):
            return place
    raise DataError(
        f"{path}: of the first {len(relative)} clips none is there; looked for {places[0] / relative[0]} and "
        f"{places[1] / relative[0]}; run from the folder that the paths start from, or move the manifest there"
    )


def _placed(clip: MusicClip, folder: Path) -> MusicClip:
    assert isinstance(clip.audio, Path)
    info = clip.info_path if clip.info_path is None else str(folder / clip.info_path)
    return replace(clip, audio=folder / clip.audio, info_path=info)


def _info(place: str) -> dict[str, Any]:
    archive, colon, member = place.rpartition(".zip:")
    try:
        if colon:
            with zipfile.ZipFile(f"{archive}.zip") as file:
                found = json.loads(file.read(member))
        else:
            found = json.loads(Path(place).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{place}: the clip's info cannot be read: {error}; mend it, or take info_path out") from None
    if not isinstance(found, dict):
        raise DataError(f"{place}: must hold a mapping from field to value, not a {type(found).__name__}")
    return {name: value for name, value in found.items() if name not in ("id", "audio")}
