"""WebDataset shards: plain tar files of `key.ext` members. They are indexed once, so that every clip can be read directly.

Shuffling, splitting between processes and resuming are done by the sampler, as for any other data.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import OnBrokenFile, ReadReport
from cadenza.data.manifest import Manifest, ManifestClip, check_unique_ids, read_metadata
from cadenza.dsp import audio_io
from cadenza.dsp.byte_range import ByteRange

_TAR_END_BYTES = 1024  # zero bytes that end a tar


@dataclass(frozen=True)
class ShardClip(ManifestClip):
    """A clip inside a shard, with the members of its sample by extension."""

    members: dict[str, ByteRange] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Return the mapping in `.json`, with `.txt` (or its `text`) as `prompt` and `.cls` as `class` if it lacks them."""
        metadata = read_metadata(self.members)
        if "prompt" not in metadata and isinstance(metadata.get("text"), str):
            metadata["prompt"] = metadata["text"]
        return {**metadata, **self.inline}


def list_shards(path: str | Path) -> list[Path]:
    """Return the tar files in a folder in order, or the file itself."""
    path = Path(path)
    return [path] if path.is_file() else sorted(shard for shard in path.glob("*.tar") if not shard.name.startswith("."))


def index_shard(shard: str | Path) -> dict[str, dict[str, ByteRange]]:
    """Return the members of each sample by key and extension, from the headers alone; raise DataError if damaged."""
    shard = Path(shard)
    size, last, samples = 0, None, {}
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
                _add_member(samples, shard, member)
    except tarfile.TarError as error:
        problem = f"not a plain tar ({error}); compressed ones cannot be indexed: unpack them to .tar"
        if last is not None:
            problem = f"damaged after '{last.name}', which ends at byte {last.offset_data + last.size} of {size} ({error})"
        raise DataError(f"{shard}: {problem}; download or create it again") from None
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror or error}") from None
    if last is None:
        raise DataError(f"{shard}: an empty tar; exclude it")
    _check_end(shard, last, size)
    return samples


def load_shards(paths: Iterable[str | Path], *, on_broken_file: OnBrokenFile = "skip") -> tuple[Manifest, ReadReport]:
    """Return the clips of shards in order, and a report of broken samples; raise DataError for a damaged shard."""
    paths = [Path(path) for path in paths]
    clips, report = [], ReadReport()
    samples = [(shard, key, members) for shard in paths for key, members in index_shard(shard).items()]
    has_duplicates = len({key for _, key, _ in samples}) < len(samples)  # then ids include the shard
    for shard, key, members in samples:
        name = f"{shard.stem}/{unquote(key)}" if has_duplicates else unquote(key)
        try:
            audio = _find_audio(f"{shard}:{key}", members)
            header = audio_io.probe(audio)
        except (AudioError, DataError) as error:
            report.record_broken(name, str(error), on_broken_file)
            continue
        clips.append(ShardClip(name, audio, header.seconds, header.sample_rate, header.channels, {}, members=members))
    report.read = len(clips)
    if not clips:
        folder = paths[0].parent if paths else "the shards"
        raise DataError(f"{folder}: no sample with audio ({', '.join(audio_io.SUFFIXES)}) in {len(paths)} shards: {report}")
    check_unique_ids(clips, paths[0].parent)
    return Manifest(paths[0].parent, clips), report


def write_shards(
    manifest: Manifest, folder: str | Path, *, clips: int = 1000, on_broken_file: OnBrokenFile = "raise",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadReport:  # fmt: skip
    """Write `clips` clips per shard into an empty folder: audio files unchanged, and their metadata as JSON.

    Reading the shards gives the same ids. Each shard is written atomically.
    """
    folder = Path(folder)
    if clips < 1:
        raise DataError(f"shards of {clips} clips are empty; use at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from None
    if present := list_shards(folder):
        raise DataError(f"{folder}: already contains {len(present)} shards; choose an empty folder, or delete them")
    report = ReadReport()
    for number, start in enumerate(range(0, len(manifest), clips)):
        path = folder / f"shard-{number:05d}.tar"
        with atomic_write(path, DataError) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for clip in manifest.clips[start : start + clips]:
                try:
                    members = list(_clip_members(clip))
                except (AudioError, DataError, OSError) as error:
                    report.record_broken(clip.id, str(error), on_broken_file)
                    continue
                for name, data in members:
                    header = tarfile.TarInfo(name)
                    header.size, header.mode = len(data), 0o644
                    tar.addfile(header, BytesIO(data))
                report.read += 1
        progress(min(start + clips, len(manifest)), len(manifest))
    return report


def _add_member(samples: dict[str, dict[str, ByteRange]], shard: Path, member: tarfile.TarInfo) -> None:
    """Add a member under its key, which is its path up to the first dot of the file name."""
    parent, slash, name = member.name.removeprefix("./").rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot:
        return  # hidden files and files without an extension are not part of a sample
    members = samples.setdefault(parent + slash + stem, {})
    if extension.lower() in members:
        raise DataError(f"{shard}: '{member.name}' occurs twice; write the shard again with a key for each sample")
    members[extension.lower()] = ByteRange(shard, member.offset_data, member.size, member.name)


def _find_audio(source: str, members: dict[str, ByteRange]) -> ByteRange:
    audio = [member for extension, member in members.items() if f".{extension}" in audio_io.SUFFIXES]
    if len(audio) != 1:
        problem = "no audio" if not audio else "more than one audio file"
        raise DataError(f"{source}: {problem} among its members ({', '.join(members)}). Expected one")
    return audio[0]


def _clip_members(clip: ManifestClip) -> Iterator[tuple[str, bytes]]:
    audio_io.probe(clip.audio)  # raises if the audio cannot be read
    key = _encode_key(clip.id)
    yield f"{key}{clip.audio.suffix.lower()}", clip.audio.read_bytes()
    if metadata := clip.metadata():
        yield f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode()


def _encode_key(name: str) -> str:
    """Return an id as a key that `unquote` reverses: no dot in its last part, and no path outside the folder."""
    *parents, last = name.replace("%", "%25").split("/")
    parents = [part.replace(".", "%2E") if part in (".", "..") else part for part in parents]
    key = "/".join([*parents, last.replace(".", "%2E")])
    return f"%2F{key[1:]}" if key.startswith("/") else key


def _check_end(shard: Path, last: tarfile.TarInfo, size: int) -> None:
    """Raise DataError unless the last member is complete and followed by the zero bytes that end a tar."""
    end = last.offset_data + last.size
    if end > size:
        raise DataError(f"{shard}: cut short: '{last.name}' ends at byte {end}, but the file at {size}; download it again")
    end += -end % 512
    with open(shard, "rb") as file:
        file.seek(end)
        tail = file.read(_TAR_END_BYTES)
    if len(tail) < _TAR_END_BYTES or any(tail):
        problem = "damaged" if any(tail) else "cut short"
        raise DataError(
            f"{shard}: {problem} after '{last.name}', at byte {end}: neither a member nor the end of a tar; "
            "download or write it again"
        )
