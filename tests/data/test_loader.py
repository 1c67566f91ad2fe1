"""Sampler and loader: the same batches whatever the processes and workers, resumed exactly."""

import multiprocessing
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from cadenza.conditioners.base import PreparedInputs
from cadenza.core.errors import DataError, RequestError
from cadenza.core.types import Codes
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.items import SampleIndex
from cadenza.data.loader import BatchLoader, BatchSampler, collate, fixed_batches
from cadenza.data.manifest import scan_folder
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio

RATE = 8000


def take(sampler, count):
    return list(islice(iter(sampler), count))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_is_a_permutation_across_batch_borders(shuffle):
    drawn = [draw for batch in take(BatchSampler(10, 4, shuffle=shuffle), 15) for draw in batch]
    epochs = [[draw.index for draw in drawn if draw.epoch == epoch] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert (len({tuple(epoch) for epoch in epochs}) == 6) is shuffle
    assert [draw.epoch for draw in drawn] == sorted(draw.epoch for draw in drawn)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    one = take(BatchSampler(17, 4 * world, seed=3), 20)
    many = [take(BatchSampler(17, 4, seed=3, rank=rank, world=world), 20) for rank in range(world)]
    assert one == [sum(parts, []) for parts in zip(*many, strict=True)]


def test_the_sampler_resumes_exactly():
    whole = take(BatchSampler(7, 3, seed=1), 30)
    sampler = pickle.loads(pickle.dumps(BatchSampler(7, 3, seed=1)))
    assert take(sampler, 11) == whole[:11] and take(sampler.from_position(11), 19) == whole[11:]
    assert take(sampler, 11) == whole[:11], "a sampler has no hidden position"


def test_another_seed_is_another_order():
    assert take(BatchSampler(50, 5, seed=1), 3) != take(BatchSampler(50, 5, seed=2), 3)
    for size, batch, rank in ((0, 1, 0), (1, 0, 0), (1, 1, 1)):
        with pytest.raises(DataError):
            BatchSampler(size, batch, rank=rank)


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        samples = rng.uniform(-0.5, 0.5, (RATE if i else 100, 1)).astype(np.float32)
        audio_io.write_samples(tmp_path / f"{i}.wav", samples, RATE)
        (tmp_path / f"{i}.txt").write_text(f"clip {i}")
    return AudioDataset(scan_folder(tmp_path)[0], seconds=0.1, sample_rate=RATE)


def prepare(items):
    return {
        "prompt": PreparedInputs(
            {"n": torch.tensor([int(item["prompt"][-1]) for item in items])}, torch.ones(len(items)).bool()
        )
    }


def loader(clips, workers=0, **options):
    return BatchLoader(clips, BatchSampler(len(clips), 4, seed=5), workers=workers, pin=False, **options)


def content(batches):
    return [(b.ids, b["audio"].wave.sum().item(), b.prepared["prompt"].tensors["n"].tolist()) for b in batches]


def test_workers_change_nothing_and_resume_is_exact(clips):
    whole = content(islice(loader(clips, prepare=prepare), 20))
    reader = loader(clips, 2, prepare=prepare)
    assert content(islice(reader, 9)) == whole[:9]
    again = loader(clips, 1, prepare=prepare)
    assert content(islice(again.iter_from(9), 5)) == whole[9:14]
    assert content(islice(again.iter_from(17), 3)) == whole[17:]
    assert not multiprocessing.active_children()


def test_a_batch_carries_lengths_metadata_and_what_was_prepared(clips):
    batch = fixed_batches(clips, 60, prepare=prepare)[0]
    assert batch["audio"].wave.shape == (len(clips), 1, 800) and batch["audio"].lengths.tolist() == [100] + [800] * 50
    assert batch["seconds"] == pytest.approx((100 + 50 * 800) / RATE)
    assert batch["ids"][0] == "0" and batch["metadata"][-1]["prompt"] == "clip 5" and "audio" not in batch["metadata"][0]
    assert batch["prepared"]["prompt"].tensors["n"][-1] == 5
    assert set(batch) == {"audio", "prepared", "metadata", "ids", "seconds", "broken"} and "codes" not in batch
    assert batch.to("cpu")["audio"].wave.equal(batch["audio"].wave)


def test_fixed_batches_are_spread_and_always_the_same(clips):
    batches = fixed_batches(clips, 4, count=6)
    assert [len(batch["ids"]) for batch in batches] == [4, 2]
    assert [name for batch in batches for name in batch["ids"]] == [clips.item_id(i * len(clips) // 6) for i in range(6)]
    assert content([fixed_batches(clips, 4, count=6, prepare=prepare)[0]]) == content(
        [fixed_batches(clips, 4, count=6, prepare=prepare)[0]]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_stop_or_are_counted_and_named(clips, workers):
    clips.manifest.clips[2].audio.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"cannot read item '2': .*2.wav: not audio.*on_broken_file='skip'"):
        list(islice(loader(clips, workers), 20))
    reader = loader(clips, workers, on_broken_file="skip")
    batches = list(islice(reader, 20))
    assert sum(len(batch["ids"]) for batch in batches) < 80 and all("2" not in batch["ids"] for batch in batches)
    assert list(reader.report.broken) == ["2"] and reader.report.read == sum(len(b["ids"]) for b in batches)
    assert [len(batch["ids"]) + len(batch["broken"]) for batch in batches if batch["broken"]] and "1 broken:\n  2: " in str(
        reader.report
    )


def test_a_batch_of_nothing_but_broken_files_is_an_error(clips):
    for clip in clips.manifest.clips:
        clip.audio.unlink()
    with pytest.raises(DataError, match="has no readable item.*broken"):
        next(loader(clips, on_broken_file="skip").iter_from(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_metadata_that_a_conditioner_refuses(clips, workers):
    def refuse(items):
        raise RequestError("tempo must be a number")

    with pytest.raises(DataError, match="the items .* cannot be prepared: tempo must be a number"):
        next(loader(clips, workers, prepare=refuse).iter_from(0))


def test_codes_are_stacked_with_lengths():
    def item(name, frames):
        return {"id": name, "codes": Codes(torch.full((1, 2, frames), frames), samples=torch.tensor([frames * 10]))}

    batch = collate([item("a", 3), item("b", 5)], frame_rate=50.0)
    assert batch["codes"].ids.tolist()[0] == [[3, 3, 3, 0, 0]] * 2
    assert batch["codes"].lengths.tolist() == [3, 5] and batch["codes"].samples.tolist() == [30, 50]
    assert batch["seconds"] == pytest.approx(8 / 50)


def test_unlike_items_do_not_make_a_batch():
    one, other = {"id": "a", "audio": Audio(torch.zeros(1, 1, 5), RATE)}, {"id": "b"}
    with pytest.raises(DataError, match="'audio' is missing in some, but present in 'a'"):
        collate([one, other])
    with pytest.raises(DataError, match="differ in sample rate"):
        collate([one, {"id": "b", "audio": Audio(torch.zeros(1, 1, 5), 2 * RATE)}])


def test_a_user_list_works_as_a_dataset():
    class Mine:
        def __len__(self):
            return 3

        def item_id(self, index):
            return str(index)

        def __getitem__(self, draw: SampleIndex):
            return {"id": str(draw.index), "tempo": draw.index}

    batch = next(BatchLoader(Mine(), BatchSampler(3, 3), pin=False).iter_from(0))
    assert sorted(item["tempo"] for item in batch["metadata"]) == [0, 1, 2] and batch["seconds"] == 0
