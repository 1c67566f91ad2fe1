"""Clips of a codec in chunks, each with its loudness, through the encoded store."""

from pathlib import Path

import pytest
import torch

from cadenza.codecs.base import CodecSpec
from cadenza.data import encoded_store as encode_module
from cadenza.data.encoded_dataset import EncodedDataset
from cadenza.data.encoded_store import EncodedStore, encode_dataset
from cadenza.data.items import SampleIndex
from cadenza.data.loader import collate
from cadenza.data.manifest import scan_folder
from cadenza.dsp.audio import Audio, load_audio

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
    monkeypatch.setattr(encode_module, "BATCH", 0.1)  # seconds; a longer clip is still encoded as one
    encode_dataset(scan_folder(tmp_path / "audio")[0], codec, tmp_path / "s", shard=2)
    EncodedStore(tmp_path / "s").pack(tmp_path / "all.safetensors")
    for path in (tmp_path / "s", tmp_path / "all.safetensors"):
        data = EncodedDataset(path, frames=100, codec=codec, fixed=True)
        batch = collate([data[SampleIndex(i)] for i in range(len(lengths))], None)
        assert batch.codes is not None
        decoded = codec.decode(batch.codes)
        assert decoded.lengths.tolist() == lengths
        for i, clip in enumerate(decoded):
            direct = codec.decode(codec.encode(load_audio(tmp_path / "audio" / f"{i}.wav")))
            torch.testing.assert_close(clip.wave, direct.wave, atol=1e-6, rtol=1e-5)
