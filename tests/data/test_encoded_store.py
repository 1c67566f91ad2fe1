"""The encoded store: codes of every clip once, resumable, tied to its codec, equal with any number of shards."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from cadenza.codecs.base import CodecSpec
from cadenza.core.errors import DataError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.data import encoded_store
from cadenza.data.encoded_dataset import EncodedDataset
from cadenza.data.encoded_store import EncodedStore, encode_dataset
from cadenza.data.items import SampleIndex, select_holdout
from cadenza.data.loader import BatchLoader, BatchSampler, collate
from cadenza.data.manifest import scan_folder
from cadenza.data.sources import is_encoded_store
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio, load_audio

RATE, HOP = 8000, 80


class Toy(nn.Module):
    """Two rows a frame of 80 samples: the mean and the first sample, in steps of 1/1000, plus a trained offset."""

    def __init__(self, offset=1000, kind="codes", scale=False, bins=4000):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(float(offset)))
        frame_format = FrameFormat(cast(Any, kind), RATE / HOP, 2, bins)
        spec = {"type": "toy", "bins": bins}
        self.spec = SimpleNamespace(
            sample_rate=RATE, channels=1, hop_length=HOP, frame_format=frame_format, uses_chunks=False, to_dict=lambda: spec
        )
        self.frame_format, self.scale, self.encoded = frame_format, scale, 0

    def encode(self, audio):
        self.encoded += len(audio)
        lengths = -(-audio.lengths // HOP)
        frames = nn.functional.pad(audio.wave[:, 0], (0, -audio.wave.shape[-1] % HOP)).unflatten(1, (-1, HOP))
        rows = torch.stack([frames.mean(-1), frames[..., 0]], 1)
        if self.frame_format.kind == "latents":
            return Latents(rows, lengths, audio.lengths)
        ids = (rows * 1000 + self.offset).round().long()
        return Codes(ids, lengths, audio.lengths, torch.full((len(audio), 1), 2.0) if self.scale else None)


def toy(**options) -> Any:
    return cast(Any, Toy(**options))


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for i in range(7):
        samples = rng.uniform(-0.9, 0.9, (RATE // 2 + 37 * i if i else 1, 1)).astype(np.float32)
        audio_io.write_samples(tmp_path / f"audio/{i}.wav", samples, RATE)
        facts = {
            "prompt": [f"clip {i}", f"sound {i}"],
            "tempo": 60.0 + i,
            "key": "A minor",
            "notes": [[0.0, 1.0, 60, 64, "bass"]],
            "melody": [[0.0, 1.0, 72]],
        }
        (tmp_path / f"audio/{i}.json").write_text(json.dumps(facts))
    return scan_folder(tmp_path / "audio")[0]


def expected(manifest, i):
    """The codes of a clip by numpy from its file."""
    samples = audio_io.read_samples(manifest.clips[i].audio)[0][:, 0].astype(np.float64)
    frames = np.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)
    return np.stack([frames.mean(1), frames[:, 0]]) * 1000 + 1000


def close(ids, rows):
    assert ids.shape == rows.shape and np.abs(np.asarray(ids) - rows).max() <= 0.5001


def test_every_clip_is_encoded_with_its_lengths_and_metadata(manifest, tmp_path):
    seen = []
    report = encode_dataset(manifest, toy(), tmp_path / "s", shard=3, progress=lambda done, total: seen.append((done, total)))
    assert report.read == 7 and seen[-1] == (7, 7) and seen == sorted(seen)
    assert [path.name for path in sorted((tmp_path / "s").iterdir())][:2] == ["shard-00000.jsonl", "shard-00000.safetensors"]
    assert len(list((tmp_path / "s").iterdir())) == 6 and is_encoded_store(tmp_path / "s")
    store = EncodedStore(tmp_path / "s")
    store.header.check_codec(toy(), store.path)
    assert len(store) == 7 and store.header.rows == 2
    for i in range(7):
        shard, inside = store.rows[i]
        close(shard.frames(inside, 0, store.length(i)), expected(manifest, i))
        assert shard.samples[inside] == audio_io.probe(manifest.clips[i].audio).frames
        facts = {
            "prompt": [f"clip {i}", f"sound {i}"],
            "tempo": 60.0 + i,
            "key": "A minor",
            "melody": [[0.0, 1.0, 72]],
            "id": str(i),
        }
        assert store.metadata(i) == facts
    encode_dataset(manifest, toy(), tmp_path / "chosen", keep={"notes"})
    assert EncodedStore(tmp_path / "chosen").metadata(2) == {"notes": [[0.0, 1.0, 60, 64, "bass"]], "id": "2"}


def test_it_goes_on_where_it_stopped(manifest, tmp_path):
    encode_dataset(manifest, toy(), tmp_path / "s", shard=3)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir()}
    (tmp_path / "s/shard-00001.safetensors").unlink()
    with pytest.raises(DataError, match="1 of 3 shards are missing; encode again"):
        EncodedStore(tmp_path / "s")
    codec = toy()
    report = encode_dataset(manifest, codec, tmp_path / "s", shard=3)
    assert codec.encoded == report.read == 3
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir()}
    assert {name: data for name, (data, _) in before.items()} == {name: data for name, (data, _) in after.items()}
    assert before["shard-00002.safetensors"] == after["shard-00002.safetensors"]


def test_an_interrupted_shard_leaves_nothing(manifest, tmp_path, monkeypatch):
    codec = toy()
    plain = codec.encode

    def stop(audio):
        if codec.encoded >= 3:
            raise KeyboardInterrupt
        return plain(audio)

    monkeypatch.setattr(codec, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(manifest, codec, tmp_path / "s", shard=3)
    assert [path.name for path in sorted((tmp_path / "s").iterdir())] == ["shard-00000.jsonl", "shard-00000.safetensors"]
    assert encode_dataset(manifest, toy(), tmp_path / "s", shard=3).read == 4


def test_a_store_of_another_codec_is_refused(manifest, tmp_path):
    encode_dataset(manifest, toy(), tmp_path / "s")
    for codec, message in ((toy(offset=1), "the weights differ"), (toy(bins=5000), "spec differs in bins")):
        with pytest.raises(DataError, match=message):
            EncodedDataset(EncodedStore(tmp_path / "s"), frames=5, codec=codec)
        with pytest.raises(DataError, match=message):
            encode_dataset(manifest, codec, tmp_path / "s")
    (lines := tmp_path / "s" / "shard-00000.jsonl").rename(tmp_path / "lines")  # it is not overwritten either
    with pytest.raises(DataError, match="the weights differ"):
        encode_dataset(manifest, toy(offset=1), tmp_path / "s")
    (tmp_path / "lines").rename(lines)
    with pytest.raises(DataError, match="other clips"):
        encode_dataset(replace(manifest, clips=manifest.clips[:5]), toy(), tmp_path / "s")


def test_broken_files_stop_or_are_left_out_by_name(manifest, tmp_path):
    manifest.clips[4].audio.write_bytes(b"gone")
    with pytest.raises(DataError, match="cannot read item '4': .*4.wav"):
        encode_dataset(manifest, toy(), tmp_path / "s", shard=3)
    report = encode_dataset(manifest, toy(), tmp_path / "s", shard=3, on_broken_file="skip")
    assert list(report.broken) == ["4"]
    store = EncodedStore(tmp_path / "s")
    assert [store.metadata(i)["id"] for i in range(len(store))] == ["0", "1", "2", "3", "5", "6"]
    close(store.rows[4][0].frames(store.rows[4][1], 0, store.length(4)), expected(manifest, 5))


def test_clips_longer_than_a_section_are_the_same(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_store, "BATCH_SECONDS", 0.25)
    encode_dataset(manifest, toy(), tmp_path / "s")
    store = EncodedStore(tmp_path / "s")
    for i in range(7):
        shard, inside = store.rows[i]
        close(shard.frames(inside, 0, store.length(i)), expected(manifest, i))
        assert shard.samples[inside] == audio_io.probe(manifest.clips[i].audio).frames
    with pytest.raises(DataError, match="a codec with a scale cannot encode clips over"):
        encode_dataset(manifest, toy(scale=True), tmp_path / "t")


def test_windows_are_parts_of_the_whole(manifest, tmp_path):
    encode_dataset(manifest, toy(scale=True), tmp_path / "s", shard=3)
    data = EncodedDataset(tmp_path / "s", frames=20, codec=toy(scale=True))
    assert [data.item_id(i) for i in range(len(data))][:3] == ["0", "1", "1"] and data.frame_rate == 100
    starts, prompts = set(), set()
    for epoch in range(300):
        item = data[SampleIndex(1, epoch)]
        start = round(item["seconds_start"] * 100)
        close(item["codes"].ids[0], expected(manifest, 1)[:, start : start + 20])
        assert item["codes"].scale.tolist() == [[2.0]] and item["codes"].lengths.tolist() == [20]
        assert item["codes"].samples.tolist() == [min(20 * HOP, 4037 - start * HOP)] and item["seconds_total"] == 4037 / RATE
        starts.add(start)
        prompts.add(item["prompt"])
    assert starts == set(range(0, 32)) and prompts == {"clip 1", "sound 1"}
    short = data[SampleIndex(0)]
    assert short["codes"].lengths.tolist() == [1] and short["codes"].samples.tolist() == [1]
    assert short["codes"].ids.shape == (1, 2, 20) and not short["codes"].ids[..., 1:].any()
    again = EncodedDataset(tmp_path / "s", frames=20)
    assert again[SampleIndex(3, 5)]["codes"].ids.equal(data[SampleIndex(3, 5)]["codes"].ids)


def test_fixed_windows_and_a_split(manifest, tmp_path):
    encode_dataset(manifest, toy(), tmp_path / "s")
    rest, held = EncodedDataset(tmp_path / "s", frames=20, ids={"key"}).split(2)
    ids = {rest.item_id(i) for i in range(len(rest))}, {held.item_id(i) for i in range(len(held))}
    assert len(ids[0]) == 5 and len(ids[1]) == 2 and not ids[0] & ids[1] and held.fixed
    assert all(held[SampleIndex(i, epoch)]["seconds_start"] in (0, 0.2) for i in range(len(held)) for epoch in range(3))
    assert set(rest[SampleIndex(0)]) == {"key", "codes", "id", "seconds_start", "seconds_total"}
    assert {held.item_id(i) for i in range(len(held))} == select_holdout([clip.id for clip in manifest.clips], 2)


def test_a_store_of_one_shard_opens_from_its_file(manifest, tmp_path):
    encode_dataset(manifest, toy(scale=True), tmp_path / "s", shard=2)
    encode_dataset(manifest, toy(scale=True), tmp_path / "all")
    single = tmp_path / "all/shard-00000.safetensors"
    assert is_encoded_store(single) and {path.name for path in single.parent.iterdir()} == {single.name, "shard-00000.jsonl"}
    one, other = EncodedDataset(tmp_path / "s", frames=15), EncodedDataset(single, frames=15, codec=toy(scale=True))
    assert len(one) == len(other)
    for index in range(len(one)):
        a, b = one[SampleIndex(index, 3)], other[SampleIndex(index, 3)]
        assert a.pop("codes").ids.equal(b.pop("codes").ids) and a == b
    assert single.stat().st_size < 2 * 2 * 320 + 3000  # uint16 codes, two rows, about 320 frames, and a header


def test_latents_are_kept_in_half_precision(manifest, tmp_path):
    encode_dataset(manifest, toy(kind="latents"), tmp_path / "s")
    item = EncodedDataset(tmp_path / "s", frames=10, fixed=True)[SampleIndex(1)]
    rows = (expected(manifest, 1)[:, :10] - 1000) / 1000
    np.testing.assert_allclose(item["latents"].z[0].numpy(), rows, atol=1e-3)
    assert item["latents"].z.dtype == torch.float32 and item["latents"].lengths.tolist() == [10]


def test_damage_is_named(manifest, tmp_path):
    encode_dataset(manifest, toy(), tmp_path / "s")
    path = tmp_path / "s/shard-00000.safetensors"
    whole, lines = path.read_bytes(), path.with_suffix(".jsonl").read_bytes()
    path.with_suffix(".jsonl").write_bytes(lines[: lines.index(b"\n") + 1])
    with pytest.raises(DataError, match="has 7 clips and 1 lines"):
        EncodedStore(tmp_path / "s")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete shard"):
        EncodedStore(tmp_path / "s")
    with pytest.raises(DataError, match="damaged .*delete it"):
        encode_dataset(manifest, toy(), tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not an encoded store"):
        EncodedStore(tmp_path / "empty")


def test_workers_read_windows_into_batches(manifest, tmp_path):
    encode_dataset(manifest, toy(), tmp_path / "s", shard=3)

    def batches(workers):
        data = EncodedDataset(tmp_path / "s", frames=20)
        return list(islice(BatchLoader(data, BatchSampler(len(data), 5), workers=workers, pin=False), 6))

    for one, other in zip(batches(0), batches(2), strict=True):
        assert one["codes"].ids.shape == (5, 2, 20) and one["codes"].ids.equal(other["codes"].ids)
        assert one["ids"] == other["ids"] and one["seconds"] == float(one["codes"].lengths.sum()) / 100


MONO = {"sample_rate": 8000, "strides": [4, 4, 2], "codebooks": 2, "bins": 16, "filters": 4, "dimension": 8}
CHUNKED = {**MONO, "type": "encodec", "normalize": True, "chunk_seconds": 0.025, "chunk_overlap": 0.1, "causal": False}


@pytest.mark.parametrize("spec", [{**CHUNKED, "channels": 2}, {"type": "stereo", "codec": CHUNKED}], ids=["encodec", "stereo"])
def test_stored_clips_decode_as_if_never_stored(spec: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    codec = CodecSpec.parse(spec).build().eval()
    (tmp_path / "audio").mkdir()
    lengths = [1, 181, 900, 377]
    for i, length in enumerate(lengths):
        Audio(0.3 * torch.rand(1, 2, length), 8000).save(tmp_path / "audio" / f"{i}.wav", subtype="FLOAT")
    monkeypatch.setattr(encoded_store, "BATCH_SECONDS", 0.1)  # seconds; a longer clip is still encoded as one
    encode_dataset(scan_folder(tmp_path / "audio")[0], codec, tmp_path / "s", shard=2)
    encode_dataset(scan_folder(tmp_path / "audio")[0], codec, tmp_path / "all")
    for path in (tmp_path / "s", tmp_path / "all/shard-00000.safetensors"):
        data = EncodedDataset(path, frames=100, codec=codec, fixed=True)
        batch = collate([data[SampleIndex(i)] for i in range(len(lengths))], None)
        assert batch.codes is not None
        decoded = codec.decode(batch.codes)
        assert decoded.lengths.tolist() == lengths
        for i, clip in enumerate(decoded):
            direct = codec.decode(codec.encode(load_audio(tmp_path / "audio" / f"{i}.wav")))
            torch.testing.assert_close(clip.wave, direct.wave, atol=1e-6, rtol=1e-5)
