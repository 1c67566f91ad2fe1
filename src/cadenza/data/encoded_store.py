"""Encoded store: the codes or latents of many clips, in shards of one safetensors and one JSON-lines file each.

A shard has `frames` [sum of lengths, rows] (uint16 for codes, float16 for latents), `offsets` [n + 1], `samples` [n]
and, for codecs with a scale, `scale` [n, ...]; its header identifies the codec by spec and hash of weights.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from cadenza.codecs.base import Codec
from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.core.migrations import FORMAT, format_1_weight_name, migrate_codec_spec
from cadenza.core.types import Codes, Latents
from cadenza.data.items import Item, OnBrokenFile, ReadReport
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.audio import Audio, load_audio

CLIPS_PER_SHARD = 512
BATCH_SECONDS = 120.0  # seconds of audio encoded at a time; longer clips are encoded in sections of this length
_HEADER_KEY = "cadenza"
_PLAIN_TYPES = (str, int, float, bool)


@dataclass(frozen=True)
class StoreHeader:
    """Header of a shard; shards of one store differ in `shard` only."""

    kind: Literal["codes", "latents"]
    codec: dict[str, Any]  # its spec
    weights: str  # sha256 of its weights
    frame_rate: float
    hop: int  # samples per frame
    rows: int  # codebooks, or dimensions of a latent
    cardinality: int
    sample_rate: int
    clips: str  # sha256 of the ids of all clips, in order
    shards: int
    shard: int = 0
    format: int = FORMAT

    def check_codec(self, codec: Codec, source: str | Path) -> None:
        """Raise DataError unless the store was encoded by this codec with these weights."""
        spec, weights = codec.spec.to_dict(), codec_sha256(codec)
        if self.codec == spec and self.weights == weights:
            return
        changed = [key for key in {**self.codec, **spec} if self.codec.get(key) != spec.get(key)]
        reason = f"its spec differs in {', '.join(sorted(changed))}" if changed else "the weights differ"
        raise DataError(f"{source}: encoded by another codec: {reason}. Encode the audio with this codec in a new folder")


class StoreShard:
    """One pair of files; frames and lines of metadata are read when they are needed."""

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
            raise DataError(f"{path}: not a complete shard of an encoded store ({error}); delete it and encode again") from None
        if len(self._lines) != len(self) or len(self.samples) != len(self):
            raise DataError(f"{path}: has {len(self)} clips and {len(self._lines)} lines of metadata; encode again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # each process opens the file itself

    def metadata(self, clip: int) -> dict[str, Any]:
        return json.loads(self._lines[clip])

    def frames(self, clip: int, start: int, stop: int) -> Tensor:
        """Return frames `[start, stop)` of a clip as [rows, frames]."""
        if self._file is None:
            self._file = safe_open(self.path, "pt").__enter__()
        first = self.offsets[clip]
        part = self._file.get_slice("frames")[first + start : first + stop]
        return part.to(torch.long if self.header.kind == "codes" else torch.float32).T.contiguous()


class EncodedStore:
    """All shards of a folder, or the file of a store of one shard, as one sequence of clips."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        paths = [path] if path.is_file() else sorted(path.glob("shard-*.safetensors"))
        if not paths:
            raise DataError(f"{path}: not an encoded store; create one with `cadenza encode`")
        self.shards = [StoreShard(shard) for shard in paths]
        self.header = self.shards[0].header
        if missing := set(range(self.header.shards)) - {shard.header.shard for shard in self.shards}:
            raise DataError(f"{path}: {len(missing)} of {self.header.shards} shards are missing; encode again to complete it")
        for shard in self.shards:
            if replace(shard.header, shard=0) != replace(self.header, shard=0):
                raise DataError(f"{shard.path}: belongs to another store than {self.shards[0].path}; use separate folders")
        self.rows = [(shard, row) for shard in self.shards for row in range(len(shard))]  # of each clip

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, clip: int) -> int:
        """Return the number of frames of a clip."""
        shard, row = self.rows[clip]
        return shard.offsets[row + 1] - shard.offsets[row]

    def metadata(self, clip: int) -> dict[str, Any]:
        shard, row = self.rows[clip]
        return shard.metadata(row)


def write_shard(path: Path, header: StoreHeader, rows: Sequence[Mapping[str, Any]], metadata: Sequence[Item]) -> None:
    """Write metadata, then tensors, so that a shard with tensors is complete. `rows` have frames [f, k], samples, scale."""
    dtype = torch.uint16 if header.kind == "codes" else torch.float16
    lengths = [len(row["frames"]) for row in rows]
    frames = torch.cat([row["frames"].to(dtype) for row in rows]) if rows else torch.zeros(0, header.rows, dtype=dtype)
    tensors = {"frames": frames.contiguous(), "offsets": torch.from_numpy(np.cumsum([0, *lengths]))}
    tensors["samples"] = torch.tensor([row["samples"] for row in rows], dtype=torch.long)
    if rows and rows[0]["scale"] is not None:
        scales = [row["scale"].float() for row in rows]
        longest = max(scale.shape[-1] for scale in scales)  # codecs with chunks have one scale per chunk
        tensors["scale"] = torch.stack([F.pad(scale, (0, longest - scale.shape[-1])) for scale in scales])
    lines = "".join(json.dumps(dict(item), ensure_ascii=False) + "\n" for item in metadata)
    with atomic_write(path.with_suffix(".jsonl"), DataError) as file:
        file.write(lines.encode())
    with atomic_write(path, DataError) as file:
        file.write(save(tensors, {_HEADER_KEY: json.dumps(asdict(header))}))


def read_header(path: Path) -> StoreHeader:
    """Return the header of a shard; raise DataError if the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return parse_header(file.metadata(), path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and encode again") from None


def parse_header(metadata: Mapping[str, str] | None, path: Path) -> StoreHeader:
    """Return the header among a safetensors file's metadata, migrated to the present format."""
    try:
        data = json.loads((metadata or {})[_HEADER_KEY])
        if data["format"] not in range(1, FORMAT + 1):
            raise DataError(f"{path}: store format {data['format']} is not known to this release; upgrade cadenza")
        header = StoreHeader(**{field.name: data[field.name] for field in fields(StoreHeader)})
    except (KeyError, json.JSONDecodeError):
        raise DataError(f"{path}: a safetensors file, but not an encoded store") from None
    return replace(header, codec=migrate_codec_spec(header.codec), format=FORMAT) if header.format == 1 else header


def codec_sha256(codec: Codec) -> str:
    """Return a hash of a codec's weights, under their names of format 1, so that old stores stay valid."""
    digest = hashlib.sha256()
    for name, x in sorted((format_1_weight_name(name), x) for name, x in codec.state_dict().items()):
        digest.update(f"{name}:{tuple(x.shape)}".encode())
        digest.update(x.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode_dataset(  # noqa: PLR0913
    manifest: Manifest, codec: Codec, folder: str | Path, *, shard: int = CLIPS_PER_SHARD,
    keep: Collection[str] | None = None, on_broken_file: OnBrokenFile = "raise",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadReport:  # fmt: skip
    """Encode all clips into shards of `shard` clips in `folder`; complete shards are not changed.

    Metadata under the ids in `keep` is stored; by default all texts, numbers, lists of these, and lists of (start, end,
    value). `progress` is called with clips done and total clips. The report counts the clips that this call encoded.
    """
    folder = Path(folder)
    starts = range(0, len(manifest), shard)
    frame_format, spec = codec.frame_format, codec.spec
    header = StoreHeader(
        frame_format.kind, spec.to_dict(), codec_sha256(codec), frame_format.frame_rate, spec.hop_length,
        frame_format.channels, frame_format.cardinality, spec.sample_rate, manifest.digest(), len(starts),
    )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from None
    report = ReadReport()
    for number, start in enumerate(starts):
        clips = manifest.clips[start : start + shard]
        path, shard_header = folder / f"shard-{number:05d}.safetensors", replace(header, shard=number)
        if path.exists():
            present = read_header(path)
            present.check_codec(codec, path)
            if present != shard_header:
                raise DataError(
                    f"{path}: encoded from other clips or with another shard size; use a new folder, or delete this one"
                )
        if not (path.exists() and path.with_suffix(".jsonl").exists()):
            rows, batch = [], []
            for clip, audio in _load_clips(clips, codec, report, on_broken_file):
                batch.append((clip, audio))
                if sum(float(part.seconds) for _, part in batch) > BATCH_SECONDS:
                    rows += _encode_batch(codec, batch)
                    batch = []
                    progress(start + len(rows), len(manifest))
            rows += _encode_batch(codec, batch)
            write_shard(path, shard_header, [row for _, row in rows], [_stored_metadata(clip, keep) for clip, _ in rows])
            report.read += len(rows)
        progress(start + len(clips), len(manifest))
    return report


def _load_clips(
    clips: Sequence[ManifestClip], codec: Codec, report: ReadReport, on_broken_file: OnBrokenFile
) -> Iterator[tuple[ManifestClip, Audio]]:
    for clip in clips:
        try:
            clip.metadata()
            yield clip, load_audio(clip.audio).resample(codec.spec.sample_rate).to_channels(codec.spec.channels)
        except (AudioError, DataError) as error:
            report.record_broken(clip.id, str(error), on_broken_file)


@torch.no_grad()
def _encode_batch(codec: Codec, clips: Sequence[tuple[ManifestClip, Audio]]) -> list[tuple[ManifestClip, dict[str, Any]]]:
    """Return the row of a shard for each clip; a clip longer than a section is encoded alone."""
    if not clips:
        return []
    section = max(1, int(BATCH_SECONDS * codec.spec.sample_rate) // codec.spec.hop_length) * codec.spec.hop_length
    if len(clips) > 1 and any(int(audio.lengths) > section for _, audio in clips):
        return [row for clip in clips for row in _encode_batch(codec, [clip])]
    if int(clips[0][1].lengths) > section and not codec.spec.uses_chunks:
        return [(clips[0][0], _encode_sections(codec, clips[0][1], section))]
    frames = codec.encode(Audio.pad_and_stack([audio for _, audio in clips]))
    return [(clip, _row(part, audio)) for (clip, audio), part in zip(clips, frames, strict=True)]


def _encode_sections(codec: Codec, audio: Audio, section: int) -> dict[str, Any]:
    """Return the row of a clip encoded in sections of whole frames, to bound the memory of a long one."""
    parts = [Audio(wave, audio.sample_rate) for wave in audio.wave.split(section, -1)]
    rows = [_row(codec.encode(part), part) for part in parts]
    if rows[0]["scale"] is not None:
        raise DataError(f"a codec with a scale cannot encode clips over {BATCH_SECONDS:g} s; cut the audio into shorter files")
    return {"frames": torch.cat([row["frames"] for row in rows]), "samples": int(audio.lengths), "scale": None}


def _row(frames: Codes | Latents, audio: Audio) -> dict[str, Any]:
    scale = frames.scale[0].cpu() if isinstance(frames, Codes) and frames.scale is not None else None
    return {"frames": frames.data[0, :, : int(frames.lengths[0])].T.cpu(), "samples": int(audio.lengths), "scale": scale}


def _stored_metadata(clip: ManifestClip, keep: Collection[str] | None) -> dict[str, Any]:
    metadata = clip.metadata()
    return {**{k: x for k, x in metadata.items() if (_is_plain(x) if keep is None else k in keep)}, "id": clip.id}


def _is_plain(value: Any) -> bool:
    """Return whether a value is a text, a number, or a list of these or of (start, end, value)."""
    values = value if isinstance(value, list) else [value]
    parts = (part for x in values for part in (x if isinstance(x, list) and len(x) == 3 else [x]))
    return all(isinstance(part, _PLAIN_TYPES) for part in parts)
