"""Encode: a manifest's audio becomes an encoded store, once; an interrupted run goes on where it stopped."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cadenza.codecs.base import Codec
from cadenza.core.errors import AudioError, DataError
from cadenza.core.types import Codes, Latents
from cadenza.data.items import Broken, ReadReport
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.data.store import StoreHeader, parse_header, write_shard
from cadenza.dsp.audio import Audio, load_audio

SHARD = 512  # clips a shard
_PLAIN = (str, int, float, bool)
BATCH = 120.0  # seconds of audio encoded at a time; a longer clip is encoded in sections of this


def encode_dataset(  # noqa: PLR0913
    manifest: Manifest,
    codec: Codec,
    folder: str | Path,
    *,
    shard: int = SHARD,
    keep: Collection[str] | None = None,
    broken: Broken = "raise",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadReport:
    """Fills `folder` with the codes or latents of all clips; finished shards stay as they are.

    Metadata of the clips goes along: that under the ids in `keep`, or else all that is text, a number,
    a list of these, or a list of (start, end, value).
    `progress` hears clips done and clips in all. The report counts what this call encoded.
    """
    folder = Path(folder)
    starts = range(0, len(manifest), shard)
    header = StoreHeader.of(codec, manifest.digest(), len(starts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}; choose another place") from None
    report = ReadReport()
    for number, start in enumerate(starts):
        clips = manifest.clips[start : start + shard]
        path = folder / f"shard-{number:05d}.safetensors"
        mine = StoreHeader(**{**vars(header), "shard": number})
        if not _finished(path, mine, codec):
            rows, lines = [], []
            for clip, audio in _readable(clips, codec, report, broken):
                lines.append((clip, audio))
                if sum(float(part.seconds) for _, part in lines) > BATCH:
                    rows += _encoded(codec, lines)
                    lines = []
                    progress(start + len(rows), len(manifest))
            rows += _encoded(codec, lines)
            write_shard(path, mine, [row for _, row in rows], [_line(clip, keep) for clip, _ in rows])
            report.read += len(rows)
        progress(start + len(clips), len(manifest))
    return report


def _readable(
    clips: Sequence[ManifestClip], codec: Codec, report: ReadReport, broken: Broken
) -> Iterator[tuple[ManifestClip, Audio]]:
    for clip in clips:
        try:
            clip.metadata()
            yield clip, load_audio(clip.audio).resample(codec.spec.sample_rate).to_channels(codec.spec.channels)
        except (AudioError, DataError) as error:
            report.add_broken(clip.id, str(error), broken)


@torch.no_grad()
def _encoded(codec: Codec, clips: Sequence[tuple[ManifestClip, Audio]]) -> list[tuple[ManifestClip, dict[str, Any]]]:
    """What a shard keeps of each clip."""
    if not clips:
        return []
    section = max(1, int(BATCH * codec.spec.sample_rate) // codec.spec.hop_length) * codec.spec.hop_length
    if len(clips) > 1 and any(int(audio.lengths) > section for _, audio in clips):
        return [row for clip in clips for row in _encoded(codec, [clip])]
    if int(clips[0][1].lengths) > section and not codec.spec.uses_chunks:
        return [(clips[0][0], _long(codec, clips[0][1], section))]
    frames = codec.encode(Audio.pad_and_stack([audio for _, audio in clips]))
    return [(clip, _row(part, audio)) for (clip, audio), part in zip(clips, frames, strict=True)]


def _long(codec: Codec, audio: Audio, section: int) -> dict[str, Any]:
    """A clip encoded in whole-frame sections, so that its length is bounded by disk and not by memory."""
    parts = [Audio(wave, audio.sample_rate) for wave in audio.wave.split(section, -1)]
    rows = [_row(codec.encode(part), part) for part in parts]
    if rows[0]["scale"] is not None:
        raise DataError(f"a codec with a scale cannot encode clips over {BATCH:g} s; cut the audio into shorter files")
    return {"frames": torch.cat([row["frames"] for row in rows]), "samples": int(audio.lengths), "scale": None}


def _row(frames: Codes | Latents, audio: Audio) -> dict[str, Any]:
    values = frames.ids if isinstance(frames, Codes) else frames.z
    scale = frames.scale if isinstance(frames, Codes) else None
    length = int(frames.lengths[0])
    kept = values[0, :, :length].T.cpu()
    return {"frames": kept, "samples": int(audio.lengths), "scale": None if scale is None else scale[0].cpu()}


def _line(clip: ManifestClip, keep: Collection[str] | None) -> dict[str, Any]:
    found = clip.metadata()
    wanted = {key: value for key, value in found.items() if (_plain(value) if keep is None else key in keep)}
    return {**wanted, "id": clip.id}


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(entry, _PLAIN) or _timed(entry) for entry in value)
    return isinstance(value, _PLAIN)


def _timed(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, _PLAIN) for part in entry)


def _finished(path: Path, header: StoreHeader, codec: Codec) -> bool:
    """Whether a shard is there already; DataError if what is there is another store's."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            found = parse_header(file.metadata(), path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and start again") from None
    found.check_codec(codec, path)
    if found != header:
        raise DataError(f"{path}: was made from other clips or other shard sizes; choose a new folder, or delete this one")
    return path.with_suffix(".jsonl").exists()
