"""Dataset configs of stable-audio-tools: what they name is read; code they name is not run."""

import json

import numpy as np
import pytest
import torch
from arrays import LATENTS, encoded

from cadenza.core.errors import DataError
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.encoded_dataset import PreEncodedDataset, PreEncodedFolder
from cadenza.data.items import SampleIndex
from cadenza.data.manifest import scan_folder
from cadenza.data.sources import is_encoded, load_manifest, open_source
from cadenza.data.stable_audio_dataset import CustomMetadata, load_dataset_config
from cadenza.data.webdataset import write_shards
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio

RATE = 8000


@pytest.fixture
def folder(tmp_path):
    """Two folders of ramps, each clip's samples saying where they are."""
    for i in range(4):
        path = tmp_path / ("one", "two ü")[i % 2] / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        audio_io.write_samples(path, (np.arange(2 * RATE, dtype=np.float32) / 2**16)[:, None], RATE)
        path.with_suffix(".json").write_text(json.dumps({"prompt": f"clip {i}"}))
    return tmp_path


def config(folder, kind="audio_dir", entries=None, **more):
    entries = [{"id": "a", "path": "one"}, {"id": "b", "path": str(folder / "two ü")}] if entries is None else entries
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset_type": kind, "datasets": entries, **more}))
    return path


def clips(source, **options):
    return AudioDataset(source, seconds=0.5, sample_rate=RATE, **options)


def test_folders_of_audio(folder):
    manifest, report = load_manifest(config(folder, random_crop=True, drop_last=True))
    assert [clip.id for clip in manifest.clips] == ["a/0", "a/2", "b/1", "b/3"] and report.read == 4
    assert manifest.clips[3].metadata() == {"prompt": "clip 3"} and len(clips(manifest)) == 16
    always = clips(load_manifest(config(folder, random_crop=False))[0])
    assert len(always) == 4 and {always[SampleIndex(2, epoch)]["seconds_start"] for epoch in range(9)} == {0.0}
    (folder / "one/0.wav").write_bytes(b"gone")
    assert list(load_dataset_config(config(folder))[1].broken) == ["a/0.wav"]


def test_shards(folder):
    write_shards(scan_folder(folder / "one")[0], folder / "tars/x", clips=1)
    entries = [{"id": "s", "path": str(folder / "tars/x")}]
    manifest, _ = load_manifest(config(folder, "wds", entries, epoch_steps=2000, resampled_shards=True))
    assert [clip.id for clip in manifest.clips] == ["s/0", "s/2"] and manifest.clips[1].metadata() == {"prompt": "clip 2"}
    with pytest.raises(DataError, match="no .tar file"):
        load_dataset_config(config(folder, "wds"))


def test_encoded_folders(folder):
    encoded(folder / "z/a.npy", 100, start=5, prompt="long")
    encoded(folder / "z/b.npy", 100, prompt="brief", seconds_total=3)
    entries = [{"id": "z", "path": str(folder / "z"), "latent_crop_length": 20}]
    path = config(folder, "pre_encoded", entries, min_length_sec=10, random_crop=True)
    found, _ = open_source(path)
    assert isinstance(found, PreEncodedFolder) and [clip.id for clip in found.clips] == ["z/a"] and is_encoded(path)
    data = PreEncodedDataset(found, frames=50, frame_format=LATENTS)
    starts = {data[SampleIndex(0, epoch)]["seconds_start"] for epoch in range(200)}
    assert data.frames == 20 and len(data) == 5 and min(starts) >= 5 and max(starts) <= 5 + 80 / 25 and len(starts) > 60
    with pytest.raises(DataError, match="encoded clips, but audio is needed"):
        load_manifest(path)
    with pytest.raises(DataError, match="latent_crop_length has conflicting values"):
        load_dataset_config(config(folder, "pre_encoded", entries, latent_crop_length=30))
    with pytest.raises(DataError, match="no clip has a length"):
        load_dataset_config(config(folder, "pre_encoded", entries, max_length_sec=1))


def test_code_named_by_a_config_is_not_run(folder):
    (folder / "meta.py").write_text("raise SystemExit('it ran')")
    entries = [{"id": "a", "path": "one", "custom_metadata_module": str(folder / "meta.py")}, {"id": "b", "path": "two ü"}]
    path = config(folder, entries=entries)
    for take in (load_dataset_config, load_manifest, open_source):
        with pytest.raises(DataError, match=r"'a' names code to run, .*meta.py.* to_item=\{'a': CustomMetadata"):
            take(path)
    manifest, _ = load_dataset_config(
        path, to_item={"a": lambda item, segment: {"prompt": f"{item['prompt']} at {segment.start}"}}
    )
    data = clips(manifest, fixed=True)
    assert [data[SampleIndex(i)]["prompt"] for i in (1, 4, 9)] == ["clip 0 at 0.5", "clip 2 at 0.0", "clip 1"]
    both = clips(load_dataset_config(path, to_item=lambda item, _: {"n": 1})[0])
    assert all(both[SampleIndex(i)]["n"] == 1 for i in range(16))
    with pytest.raises(DataError, match="to_item names 'c', which is not a dataset. Available: a, b"):
        load_dataset_config(path, to_item={"c": dict})


def test_a_function_of_theirs(folder):
    seen = []

    def get_custom_metadata(info, audio):
        seen.append((info["relpath"], tuple(audio.shape), info["seconds_start"], info["seconds_total"], info["sample_rate"]))
        if info["relpath"] == "0":
            return {"__reject__": True}
        return {"prompt": info["prompt"].upper(), "__audio__": {"melody": audio * 2}}

    manifest, _ = load_dataset_config(config(folder), to_item={"a": CustomMetadata(get_custom_metadata)})
    data = clips(manifest)
    items = [data[SampleIndex(0, epoch)] for epoch in range(30)]
    assert {item["id"] for item in items} == {"a/2", "b/1", "b/3"}  # another in place of what was rejected
    assert [item["id"] for item in items] == [data[SampleIndex(0, epoch)]["id"] for epoch in range(30)]
    item = next(item for item in items if item["id"] == "a/2")
    assert item["prompt"] == "CLIP 2" and isinstance(item["melody"], Audio)
    assert torch.equal(item["melody"].wave, 2 * item["audio"].wave)
    assert {entry[1:2] + entry[3:] for entry in seen} == {((1, RATE // 2), 2, RATE)}
    assert [item["id"] for item in data.metadata_items()] == ["a/2", "b/1", "b/3"]
    with pytest.raises(DataError, match="'__replace__' is not supported"):
        clips(manifest.with_transform(CustomMetadata(lambda info, audio: {"__replace__": 1})))[SampleIndex(15)]
    with pytest.raises(DataError, match="rejected 20 segments"):
        clips(manifest.with_transform(lambda item, segment: None))[0]
    with pytest.raises(DataError, match="to_item returned a list"):
        clips(manifest.with_transform(lambda item, segment: []))[SampleIndex(15)]


def test_the_sound_can_be_replaced(folder):
    quiet = clips(scan_folder(folder / "one")[0], to_item=lambda item, segment: {"audio": Audio(0 * segment.audio.wave, RATE)})
    assert not quiet[0]["audio"].wave.any() and quiet[0]["audio"].wave.shape == (1, 1, RATE // 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_type": "video"}, "dataset_type"),
        ({"remove_silence": True}, "is not supported; process the audio files"),
        ({"volume_norm": True}, "is not supported; process the audio files"),
        ({"datasets": []}, "datasets"),
        ({"datasets": [{"id": "a", "s3_path": "s3://x/y"}]}, "'a' is not on this machine"),
        ({"datasets": [{"id": "a", "path": "gone"}]}, "'a' not found. Tried .*gone"),
        ({"datasets": [{"id": "a", "path": "one"}, {"id": "a", "path": "one"}]}, "two datasets have the id 'a'"),
        ({"random_crp": True}, "random_crp"),
        ({"dataset_type": "wds", "pre_encoded": True}, "not read from shards"),
        ({"dataset_type": "pre_encoded", "latent_extension": "pt"}, "latent_extension 'pt' is not supported"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(folder, change, message):
    path = config(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        load_dataset_config(path)


def test_no_config(folder):
    path = folder / "dataset.json"
    path.write_text("{broken")
    with pytest.raises(DataError, match="cannot be read: .*use a JSON file"):
        load_dataset_config(path)
