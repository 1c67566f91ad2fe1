"""WebDataset shards: plain tar files of `key.ext` members, indexed once and then read anywhere, and written.

The order in which items are drawn, the share of each process and worker and going on after a stop are the sampler's
affair, as for any other data: every member can be reached, so shuffling is over all shards and not within one.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import Broken, ReadReport
from cadenza.data.manifest import Manifest, ManifestClip, check_unique_ids
from cadenza.dsp import audio_io
from cadenza.dsp.byte_range import ByteRange

_END = 1024  # zero bytes that end a tar


@dataclass(frozen=True)
class ShardSample:
    """The members of a shard that share a key, by extension."""

    key: str
    members: dict[str, ByteRange]

    def metadata(self) -> dict[str, Any]:
        """The mapping in its `.json`; its `.txt` as `prompt` and its `.cls` as `class`, which count less, as does `text`."""
        found: dict[str, Any] = {}
        for extension, name in (("txt", "prompt"), ("cls", "class"), ("json", "")):
            if (member := self.members.get(extension)) is not None:
                found |= _read(member, name)
        if "prompt" not in found and isinstance(found.get("text"), str):
            found["prompt"] = found["text"]
        return {name: value for name, value in found.items() if name not in ("id", "audio")}


@dataclass(frozen=True)
class ShardClip(ManifestClip):
    """A clip inside a shard."""

    sample: ShardSample = ShardSample("", {})

    def metadata(self) -> dict[str, Any]:
        return {**self.sample.metadata(), **self.inline}


def list_shards(path: str | Path) -> list[Path]:
    """The tar files that a path stands for, in order: itself, or those in the folder."""
    path = Path(path)
    return [path] if path.is_file() else sorted(found for found in path.glob("*.tar") if not found.name.startswith("."))


def index_shard(shard: str | Path) -> list[ShardSample]:
    """The samples of a shard in order, from its headers alone; DataError that names the place where it is damaged."""
    shard = Path(shard)
    size, last, found = 0, None, {}
    try:
        size = os.path.getsize(shard)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                last = member
                if member.offset_data + member.size > size:
                    break
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(
                        f"{shard}: '{member.name}' is a link, a sparse file or a device; write the shard again with plain files"
                    )
                _file(found, shard, member)
    except tarfile.TarError as error:
        raise DataError(f"{shard}: {_damage(error, last, size)}; fetch or make it again") from None
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror or error}") from None
    if last is None:
        raise DataError(f"{shard}: an empty tar; leave it out")
    _whole(shard, last, size)
    return [ShardSample(key, members) for key, members in found.items()]


def load_shards(paths: Iterable[str | Path], *, broken: Broken = "skip") -> tuple[Manifest, ReadReport]:
    """The clips of shards in order, and a report that names what is broken in them; a damaged shard is an error."""
    paths = [Path(path) for path in paths]
    clips, report = [], ReadReport()
    samples = [(shard, sample) for shard in paths for sample in index_shard(shard)]
    keys = [sample.key for _, sample in samples]
    apart = len(set(keys)) < len(keys)  # the same keys in several shards: then the shard is a part of the id
    for shard, sample in samples:
        name = f"{shard.stem}/{unquote(sample.key)}" if apart else unquote(sample.key)
        try:
            audio = _audio(shard, sample)
            header = audio_io.probe(audio)
        except (AudioError, DataError) as error:
            report.add_broken(name, str(error), broken)
            continue
        clips.append(ShardClip(name, audio, header.seconds, header.sample_rate, header.channels, {}, sample=sample))
    report.read = len(clips)
    if not clips:
        where = paths[0].parent if paths else "the shards"
        raise DataError(f"{where}: no sample with audio ({', '.join(audio_io.SUFFIXES)}) in {len(paths)} shards: {report}")
    check_unique_ids(clips, paths[0].parent)
    return Manifest(paths[0].parent, clips), report


def write_shards(
    manifest: Manifest, folder: str | Path, *, clips: int = 1000, broken: Broken = "raise",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadReport:  # fmt: skip
    """Fills a new folder with shards of so many clips: the bytes of each audio file as they are, and its metadata.

    Ids come back when the shards are read. A shard is whole or not there.
    """
    folder = Path(folder)
    if clips < 1:
        raise DataError(f"shards of {clips} clips hold nothing; give at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}; choose another place") from None
    if there := list_shards(folder):
        raise DataError(f"{folder}: holds {len(there)} shards already; choose an empty folder, or delete them")
    report = ReadReport()
    for number, start in enumerate(range(0, len(manifest), clips)):
        path = folder / f"shard-{number:05d}.tar"
        with atomic_write(path, DataError) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for clip in manifest.clips[start : start + clips]:
                try:
                    members = list(_members(clip))
                except (AudioError, DataError, OSError) as error:
                    report.add_broken(clip.id, str(error), broken)
                    continue
                for name, data in members:
                    header = tarfile.TarInfo(name)
                    header.size, header.mode = len(data), 0o644
                    tar.addfile(header, BytesIO(data))
                report.read += 1
        progress(min(start + clips, len(manifest)), len(manifest))
    return report


def _file(found: dict[str, dict[str, ByteRange]], shard: Path, member: tarfile.TarInfo) -> None:
    """Notes a member under its key, which goes to the first dot of the file's name."""
    place, slash, name = member.name.removeprefix("./").rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot:
        return  # hidden files, and files without an extension, belong to no sample
    members = found.setdefault(place + slash + stem, {})
    if extension.lower() in members:
        raise DataError(f"{shard}: '{member.name}' is there twice; write the shard again with a key for each sample")
    members[extension.lower()] = ByteRange(shard, member.offset_data, member.size, member.name)


def _audio(shard: Path, sample: ShardSample) -> ByteRange:
    found = [member for extension, member in sample.members.items() if f".{extension}" in audio_io.SUFFIXES]
    if len(found) != 1:
        there = ", ".join(sample.members)
        what = "no audio" if not found else "more than one audio file"
        raise DataError(f"{shard}:{sample.key}: {what} among its members ({there}); a sample has one")
    return found[0]


def _read(member: ByteRange, name: str) -> dict[str, Any]:
    try:
        said = member.read_bytes().decode("utf-8")
        found = {name: " ".join(said.split())} if name else json.loads(said)
    except (AudioError, ValueError) as error:
        raise DataError(f"{member}: cannot be read: {error}; mend or leave it out") from None
    if not isinstance(found, dict):
        raise DataError(f"{member}: must hold a mapping from id to value, not a {type(found).__name__}")
    if name == "class" and said.strip().lstrip("-").isdecimal():
        return {name: int(said)}
    return found


def _members(clip: ManifestClip) -> Iterator[tuple[str, bytes]]:
    audio_io.probe(clip.audio)  # nothing that cannot be read is written
    data = clip.audio.read_bytes()
    key = _key(clip.id)
    yield f"{key}{clip.audio.suffix.lower()}", data
    if metadata := clip.metadata():
        yield f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode()


def _key(name: str) -> str:
    """An id as a key, which `unquote` makes an id again: no dot in its last part, and no way out of a folder."""
    *above, last = name.replace("%", "%25").split("/")
    above = [part.replace(".", "%2E") if part in (".", "..") else part for part in above]
    key = "/".join([*above, last.replace(".", "%2E")])
    return f"%2F{key[1:]}" if key.startswith("/") else key


def _damage(error: tarfile.TarError, last: tarfile.TarInfo | None, size: int) -> str:
    if last is None:
        return f"not a plain tar ({error}); compressed ones cannot be read at any place: unpack them to .tar"
    return f"damaged after '{last.name}', which ends at byte {last.offset_data + last.size} of {size} ({error})"


def _whole(shard: Path, last: tarfile.TarInfo, size: int) -> None:
    """DataError unless the file goes on to the end of its last member and has the zeros that end a tar."""
    end = last.offset_data + last.size
    if end > size:
        raise DataError(f"{shard}: cut short: '{last.name}' goes on to byte {end} and the file ends at {size}; fetch it again")
    end += -end % 512
    with open(shard, "rb") as file:
        file.seek(end)
        mark = file.read(_END)
    if len(mark) < _END or any(mark):
        how = "damaged" if any(mark) else "cut short"
        raise DataError(
            f"{shard}: {how} after '{last.name}', at byte {end}: no member and no end of a tar; fetch or write it again"
        )
