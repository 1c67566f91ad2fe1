"""AudioCraft manifests: JSON lines of (path, duration, sample_rate, amplitude, weight, info_path), optionally gzipped.

AudioCraft reads relative paths from its working folder; here they are looked up in the manifest's folder, then in the
current one.
"""

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadenza.core.errors import DataError
from cadenza.data.manifest import (
    Manifest,
    ManifestClip,
    check_mapping,
    check_positive,
    check_unique_ids,
    read_lines,
    read_sidecars,
    without_file_keys,
)
from cadenza.data.music_metadata import clean_metadata

AUDIOCRAFT_FILES = ("data.jsonl", "data.jsonl.gz")
MAX_LOOKUPS = 16  # clips of which at least one file must exist
_KEYS = ("path", "duration", "sample_rate", "amplitude", "weight", "info_path")


@dataclass(frozen=True)
class MusicClip(ManifestClip):
    """A clip with music metadata from `info_path` (a JSON file or `archive.zip:member`), or else from its sidecars."""

    info_path: str | None = None

    def metadata(self) -> dict[str, Any]:
        assert isinstance(self.audio, Path)
        metadata = read_sidecars(self.audio) if self.info_path is None else _read_info(self.info_path)
        return clean_metadata({**metadata, **self.inline})


def load_audiocraft_manifest(path: str | Path) -> Manifest:
    """Read an AudioCraft manifest; no audio is opened."""
    path = Path(path)
    lines = read_lines(path, "path")
    folder = _find_base(path, [Path(data["path"]) for _, data in lines])
    clips = [_parse_clip(source, data, folder) for source, data in lines]
    check_unique_ids(clips, path)
    return Manifest(folder, clips)


def is_audiocraft(path: str | Path) -> bool:
    """Return whether the first line of a `.jsonl` or `.jsonl.gz` file has AudioCraft's keys."""
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    if path.name in AUDIOCRAFT_FILES or path.suffix == ".gz":
        return True
    with open(path, "rb") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and "path" in first and "audio" not in first


def _parse_clip(source: str, data: dict[str, Any], folder: Path) -> MusicClip:
    check_positive(data, {"duration": (int, float), "sample_rate": (int,)}, source)
    weight = 1.0 if data.get("weight") is None else data["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"{source}: 'weight' must be a number of at least 0, got {weight!r}")
    info = data.get("info_path")
    if info is not None and not isinstance(info, str):
        raise DataError(f"{source}: 'info_path' must be a path, or archive.zip:member, got {info!r}")
    inline = {name: value for name, value in data.items() if name not in _KEYS}
    return MusicClip(
        id=data["path"], audio=folder / data["path"], seconds=data.get("duration"), sample_rate=data.get("sample_rate"),
        channels=None, inline=inline, weight=float(weight), info_path=None if info is None else str(folder / info),
    )  # fmt: skip


def _find_base(path: Path, paths: list[Path]) -> Path:
    """Return the folder that relative paths start from: the manifest's, or the current one."""
    relative = [audio for audio in paths if not audio.is_absolute()][:MAX_LOOKUPS]
    for folder in (path.parent, Path.cwd()):
        if not relative or any((folder / audio).exists() for audio in relative):
            return folder
    raise DataError(
        f"{path}: none of the first {len(relative)} clips was found. Tried {path.parent / relative[0]} and "
        f"{Path.cwd() / relative[0]}; run from the folder that the paths start from, or move the manifest there"
    )


def _read_info(path: str) -> dict[str, Any]:
    archive, colon, member = path.rpartition(".zip:")
    try:
        if colon:
            with zipfile.ZipFile(f"{archive}.zip") as file:
                info = json.loads(file.read(member))
        else:
            info = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: the clip's info cannot be read: {error}; fix it, or remove info_path") from None
    return without_file_keys(check_mapping(info, path))
