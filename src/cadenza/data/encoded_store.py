"""Store: what a codec made of many clips, in shards of one safetensors and one JSON-lines file each.

A shard holds `frames` [sum of lengths, rows] (uint16 for codes, float16 for latents), `offsets` [n + 1], `samples` [n]
and, where the codec has one, `scale` [n, ...]; its header names the codec by the hash of spec and weights. A packed store
is the same thing as a single shard.
"""

import bisect
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cadenza.codecs.base import Codec
from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.core.types import Codes, Latents
from cadenza.data.items import Broken, Item, ReadReport
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.audio import Audio, load_audio

FORMAT = 1
_KEY = "cadenza"


@dataclass(frozen=True)
class StoreHeader:
    """What a shard says of itself; shards of one store differ in `shard` alone."""

    kind: Literal["codes", "latents"]
    codec: dict[str, Any]  # its spec
    weights: str  # sha256 of its weights
    frame_rate: float
    hop: int
    rows: int
    cardinality: int
    sample_rate: int
    clips: str  # sha256 of the ids of all clips, in order
    shards: int
    shard: int = 0
    format: int = FORMAT

    @classmethod
    def of(cls, codec: Codec, clips: str, shards: int) -> Self:
        """What every shard made by a codec says."""
        frame_format, spec = codec.frame_format, codec.spec
        made = {
            "codec": spec.to_dict(),
            "weights": codec_sha256(codec),
            "hop": spec.hop_length,
            "sample_rate": spec.sample_rate,
        }
        seen = {
            "kind": frame_format.kind,
            "frame_rate": frame_format.frame_rate,
            "rows": frame_format.channels,
            "cardinality": frame_format.cardinality,
        }
        return cls(**made, **seen, clips=clips, shards=shards)

    def check_codec(self, codec: Codec, source: str | Path) -> None:
        """DataError unless exactly this codec, weights included, made the store."""
        spec, weights = codec.spec.to_dict(), codec_sha256(codec)
        if self.codec == spec and self.weights == weights:
            return
        changed = [key for key in {**self.codec, **spec} if self.codec.get(key) != spec.get(key)]
        how = f"its spec differs in {', '.join(sorted(changed))}" if changed else "the spec is the same but the weights differ"
        raise DataError(f"{source}: was made by another codec: {how}; encode the audio again with this codec in a new folder")


class StoreShard:
    """One pair of files; the frames are read from the mapped file piece by piece, the lines by offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        try:
            with safe_open(path, "pt") as file:
                self.header = parse_header(file.metadata(), path)
                self.offsets: list[int] = file.get_tensor("offsets").tolist()
                self.samples: list[int] = file.get_tensor("samples").tolist()
                self.scale = file.get_tensor("scale") if "scale" in file.keys() else None  # noqa: SIM118
            self._lines = [line for line in path.with_suffix(".jsonl").read_bytes().split(b"\n") if line]
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a whole shard of an encoded store ({error}); delete it and encode again") from None
        if len(self._lines) != len(self) or len(self.samples) != len(self):
            raise DataError(f"{path}: has {len(self)} clips and {len(self._lines)} lines of metadata; encode again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # each process maps the file for itself

    def metadata(self, clip: int) -> dict[str, Any]:
        return json.loads(self._lines[clip])

    def frames(self, clip: int, start: int, stop: int) -> Tensor:
        """Frames `[start, stop)` of a clip as [rows, frames]."""
        if self._file is None:
            self._file = safe_open(self.path, "pt").__enter__()
        first = self.offsets[clip]
        part = self._file.get_slice("frames")[first + start : first + stop]
        return part.to(torch.long if self.header.kind == "codes" else torch.float32).T.contiguous()


class EncodedStore:
    """All shards of a folder, or one packed file, as one sequence of clips."""

    def __init__(self, path: str | Path, *, codec: Codec | None = None) -> None:
        path = Path(path)
        self.path = path
        paths = [path] if path.is_file() else sorted(path.glob("shard-*.safetensors"))
        if not paths:
            raise DataError(f"{path}: holds no encoded store; make one with `cadenza encode`")
        self.shards = [StoreShard(each) for each in paths]
        self.header = self.shards[0].header
        missing = sorted(set(range(self.header.shards)) - {shard.header.shard for shard in self.shards})
        if missing:
            raise DataError(f"{path}: {len(missing)} of {self.header.shards} shards are missing; encode again to finish it")
        for shard in self.shards:
            if _same(shard.header) != _same(self.header):
                raise DataError(f"{shard.path}: belongs to another store than {self.shards[0].path}; keep stores apart")
        if codec is not None:
            self.header.check_codec(codec, path)
        self._ends = [0]
        for shard in self.shards:
            self._ends.append(self._ends[-1] + len(shard))

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, clip: int) -> tuple[StoreShard, int]:
        """The shard that holds a clip, and its number there."""
        which = bisect.bisect_right(self._ends, clip) - 1
        return self.shards[which], clip - self._ends[which]

    def length(self, clip: int) -> int:
        """Frames of a clip."""
        shard, inside = self.locate(clip)
        return shard.offsets[inside + 1] - shard.offsets[inside]

    def metadata(self, clip: int) -> dict[str, Any]:
        shard, inside = self.locate(clip)
        return shard.metadata(inside)

    def pack(self, path: str | Path) -> Path:
        """The whole store as one `.safetensors` with its `.jsonl`, to be carried elsewhere and read in the same way."""
        header = StoreHeader(**{**asdict(self.header), "shards": 1, "shard": 0})
        clips = [self.locate(clip) for clip in range(len(self))]
        rows = [{"frames": s.frames(i, 0, s.offsets[i + 1] - s.offsets[i]).T, "samples": s.samples[i]} for s, i in clips]
        for row, (shard, i) in zip(rows, clips, strict=True):
            row["scale"] = None if shard.scale is None else shard.scale[i]
        path = Path(path)
        write_shard(path, header, rows, [shard.metadata(i) for shard, i in clips])
        return path


def write_shard(path: Path, header: StoreHeader, rows: Sequence[Mapping[str, Any]], metadata: Sequence[Item]) -> None:
    """Writes metadata, then tensors; a shard whose tensors are there is whole. `rows` have frames [f, k], samples, scale."""
    dtype = torch.uint16 if header.kind == "codes" else torch.float16
    lengths = [len(row["frames"]) for row in rows]
    frames = torch.cat([row["frames"].to(dtype) for row in rows]) if rows else torch.zeros(0, header.rows, dtype=dtype)
    tensors = {"frames": frames.contiguous(), "offsets": torch.from_numpy(np.cumsum([0, *lengths]))}
    tensors["samples"] = torch.tensor([row["samples"] for row in rows], dtype=torch.long)
    if rows and rows[0]["scale"] is not None:
        scales = [row["scale"].float() for row in rows]
        wide = max(scale.shape[-1] for scale in scales)  # a codec in chunks has one for each of a clip's
        tensors["scale"] = torch.stack([torch.nn.functional.pad(scale, (0, wide - scale.shape[-1])) for scale in scales])
    lines = "".join(json.dumps(dict(item), ensure_ascii=False) + "\n" for item in metadata)
    with atomic_write(path.with_suffix(".jsonl"), DataError) as file:
        file.write(lines.encode())
    with atomic_write(path, DataError) as file:
        file.write(save(tensors, {_KEY: json.dumps(asdict(header))}))


def parse_header(metadata: Mapping[str, str] | None, path: Path) -> StoreHeader:
    """The header among a safetensors file's metadata."""
    try:
        data = json.loads((metadata or {})[_KEY])
        if data["format"] != FORMAT:
            raise DataError(f"{path}: store format {data['format']} is not known to this release; upgrade cadenza")
        return StoreHeader(**{field.name: data[field.name] for field in fields(StoreHeader)})
    except (KeyError, json.JSONDecodeError):
        raise DataError(f"{path}: a safetensors file, but no encoded store") from None


def codec_sha256(codec: Codec) -> str:
    """A hash of a codec's weights, wherever they are."""
    digest = hashlib.sha256()
    for name, x in sorted(codec.state_dict().items()):
        digest.update(f"{name}:{tuple(x.shape)}".encode())
        digest.update(x.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _same(header: StoreHeader) -> dict[str, Any]:
    return {key: value for key, value in asdict(header).items() if key != "shard"}


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
