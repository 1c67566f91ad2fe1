"""A whole system: generation, streaming, what it refuses, saving and loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, tiny_system

from cadenza.core.errors import CheckpointError, RequestError
from cadenza.dsp.loudness import loudness
from cadenza.system import store
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@pytest.fixture(scope="module")
def system() -> System:
    return tiny_system()


ITEMS = [
    {"prompt": "slow piano in A minor", "tempo": 80},
    {"prompt": "drums", "key": "C major"},
    {},
]


def test_length_follows_the_request(system):
    audio = system.generate(ITEMS, seconds=[0.3, 0.1, 0.2], seed=1)
    assert audio.sample_rate == 8000
    assert audio.lengths.tolist() == [2400, 800, 1600]
    assert audio.wave.isfinite().all()


def test_alone_and_in_any_batch(system):
    """Same item and seed, same tokens: alone, in a batch, in any order (DESIGN: randomness belongs to the item)."""
    whole = list(system.generate(ITEMS, seconds=[0.3, 0.1, 0.2], seed=[1, 2, 3]))
    turned = list(system.generate(ITEMS[::-1], seconds=[0.2, 0.1, 0.3], seed=[3, 2, 1]))[::-1]
    for i, (item, seconds) in enumerate(zip(ITEMS, (0.3, 0.1, 0.2), strict=True)):
        alone = system.generate(item, seconds=seconds, seed=i + 1)
        torch.testing.assert_close(alone.wave, whole[i].wave)
        torch.testing.assert_close(alone.wave, turned[i].wave)


def test_the_stream_is_what_is_generated(system):
    whole = system.generate(ITEMS[:2], seconds=0.5, seed=4)
    chunks = list(system.stream(ITEMS[:2], seconds=0.5, seed=4))
    assert len(chunks) > 2
    for i, clip in enumerate(whole):
        streamed = torch.cat([chunk.wave[i, :, : int(chunk.lengths[i])] for chunk in chunks], -1)
        torch.testing.assert_close(streamed, clip.wave[0], atol=1e-5, rtol=1e-4)


def test_a_stream_can_be_closed(system):
    stream = system.stream("drums", seconds=2, seed=0)
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_conditions_and_seed_and_guidance_matter(system):
    def codes(**fields):
        request = {"request": "slow piano", "seconds": 0.5, "seed": 0, **fields}
        return system.generate(request.pop("request"), **request).wave

    usual = codes()
    assert not torch.equal(usual, codes(request="drums"))
    assert not torch.equal(usual, codes(request={"prompt": "slow piano", "tempo": 60}))
    assert not torch.equal(usual, codes(seed=1))
    assert not torch.equal(usual, codes(guidance=1))
    assert torch.equal(usual, codes(guidance=3))


def test_guidance_zero_is_no_condition(system):
    free = system.generate({}, seconds=0.3, seed=5, guidance=1)
    torch.testing.assert_close(system.generate("drums", seconds=0.3, seed=5, guidance=0).wave, free.wave)


def rows_read(system, *args, **fields):
    """How many rows the generator reads at once, and the frames."""
    rows = []
    handle = system.generator.transformer.blocks[0].norm1.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    frames = system.generate_frames(*args, **fields)
    handle.remove()
    return rows, frames.data


def test_nothing_to_guide_by_costs_one_branch(system):
    """Guidance of 1, and guidance where no item says anything; the codes are those of two branches."""
    for what, guidance, width in (
        ("drums", 3, 2),
        ("drums", 1, 1),
        ("drums", 0, 1),
        (None, 3, 1),
        ({}, 3, 1),
        ([None, "a"], 3, 4),
    ):
        rows, _ = rows_read(system, what, seconds=0.1, guidance=guidance)
        assert set(rows) == {width}, (what, guidance)
    free, plain = (system.generate_frames(None, seconds=0.3, seed=2, guidance=g).data for g in (3, 1))
    both = system.generate_frames([None, "drums"], seconds=0.3, seed=2).data
    assert torch.equal(free, plain) and torch.equal(both[:1], free)
    assert torch.equal(system.generate_frames({"prompt": None}, seconds=0.3, seed=2).data, free)


def test_two_steps_are_guidance_in_one_batch(system):
    for what in ("drums", ITEMS):
        rows, one = rows_read(system, what, seconds=0.3, seed=2)
        twice, two = rows_read(system, what, seconds=0.3, seed=2, two_step_cfg=True)
        assert torch.equal(one, two) and max(rows) == 2 * max(twice) and len(twice) == 2 * len(rows)


@pytest.fixture(scope="module")
def short() -> System:
    """A window of 0.2 seconds."""
    return tiny_system(max_frames=100)


def test_longer_than_trained(short):
    """A long clip begins like one of a window, in the stream as well, alone or not."""
    fields = {"seconds": [0.43, 0.1], "seed": [1, 2], "stride": 0.15}
    both = list(short.generate(["drums", "piano"], **fields))
    assert [clip.wave.shape[-1] for clip in both] == [3440, 800]
    alone = short.generate("drums", seconds=0.43, seed=1, stride=0.15)
    torch.testing.assert_close(alone.wave, both[0].wave)
    begun = short.generate_frames("drums", seconds=0.2, seed=1).data
    assert torch.equal(short.generate_frames("drums", seconds=0.43, seed=1, stride=0.15).data[..., :100], begun)
    chunks = list(short.stream(["drums", "piano"], **fields))
    assert len(chunks) > 10
    for i, clip in enumerate(both):
        streamed = torch.cat([chunk.wave[i, :, : int(chunk.lengths[i])] for chunk in chunks], -1)
        torch.testing.assert_close(streamed, clip.wave[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(short.generate("drums", seconds=0.43, seed=1, stride=0.1).wave, alone.wave)
    usual = tiny_system(max_frames=100, stride=0.15).generate("drums", seconds=0.43, seed=1)
    assert torch.equal(usual.wave, alone.wave)


def test_beats_go_on_as_long_as_the_clip():
    """The beat of frame t is that of the whole clip, in whichever window t lies; what was enough before stays as it was."""
    tempo = {"type": "beats", "output_dim": 16, "frame_rate": 500, "max_frames": 100}
    tree = {**TINY, "conditioners": {**TINY["conditioners"], "tempo": tempo}}
    tree["fusion"] = {"cross": ["prompt"], "prepend": ["key"], "add": [{"id": "tempo", "resize": "cut"}]}
    torch.manual_seed(0)
    system = (
        System(SystemSpec.parse({**tree, "generator": {**TINY["generator"], "max_frames": 100}})).eval().requires_grad_(False)
    )
    items = [{"tempo": 117}, {"tempo": [0.01, 0.2]}, {"prompt": "drums"}]
    long, usual = (system.fuse(system.encode_conditions(system.prepare(items, frames=n)), frames=n).add for n in (230, 100))
    assert long.shape[1] == 230 and torch.equal(long[:, :100], usual)
    later = system.fuse(system.encode_conditions(system.prepare([{"tempo": [0.0, 60 / 117]}], frames=430)), frames=430).add
    torch.testing.assert_close(later[0, :230], long[0], atol=1e-4, rtol=1e-3)
    whole = system.generate_frames(items, seconds=0.46, seed=1, stride=0.15).data
    assert torch.equal(system.generate_frames(items[1], seconds=0.46, seed=1, stride=0.15).data, whole[1:2])


def test_progress_counts_the_frames_of_the_longest(short):
    for seconds, total in ((0.18, 90), ([0.1, 0.15], 75), (0.5, 250)):
        seen = []
        short.generate(["a", "b"], seconds=seconds, progress=lambda done, total: seen.append((done, total)))  # noqa: B023
        assert {all_ for _, all_ in seen} == {total} and seen[-1] == (total, total)
        done = [frames for frames, _ in seen]
        assert done == sorted(set(done)) and len(done) >= total // 16  # as often as a block of steps ends


def test_a_progress_that_raises_stops_the_work(system):
    reads = []
    handle = system.generator.transformer.blocks[0].norm1.register_forward_hook(lambda *_: reads.append(0))

    def enough(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        system.generate("drums", seconds=2, progress=enough)
    handle.remove()
    assert len(reads) <= 32


def test_closing_a_stream_stops_the_work(short):
    reads = []
    handle = short.generator.transformer.blocks[0].norm1.register_forward_hook(lambda *_: reads.append(0))
    stream = short.stream("drums", seconds=10)
    next(stream)
    before = len(reads)
    stream.close()
    handle.remove()
    assert len(reads) == before <= 32


def test_loudness_is_set_and_nothing_clips(system):
    plain = system.generate(["drums", "piano"], seconds=[0.5, 0.45])
    soft = system.generate(["drums", "piano"], seconds=[0.5, 0.45], loudness=-30)
    assert torch.equal(soft.lengths, plain.lengths)
    for before, clip in zip(plain, soft, strict=True):
        assert loudness(clip.wave[0], 8000) == pytest.approx(-30, abs=0.01)
        gain = clip.wave / before.wave
        torch.testing.assert_close(gain, gain.mean().expand_as(gain), rtol=1e-3, atol=0)
    with pytest.warns(UserWarning, match="clip 1 stays at .* LUFS: -5 would clip its peaks"):
        loud = system.generate("drums", seconds=0.5, loudness=-5)
    assert float(loud.wave.abs().max()) == pytest.approx(10 ** (-1 / 20), rel=1e-3)
    with pytest.raises(RequestError, match="loudness needs a whole clip"):
        system.stream("drums", loudness=-20)


@pytest.mark.parametrize(
    "what, fields, words",
    [
        ("drums", {"seconds": 3, "stride": 2}, "a stride of 2 seconds does not suit a window of 2; use less"),
        ("drums", {"seconds": 3, "stride": 0}, "stride"),
        ("drums", {"loudness": 3}, "loudness"),
        ("drums", {"two_steps": True}, "two_steps: unknown field. Did you mean 'two_step_cfg'"),
        ("drums", {"seconds": 1e9}, "too long: a clip may have up to 3600"),
        ({"promt": "x"}, {}, "no condition called 'promt'. Did you mean 'prompt'"),
        ({"tempo": "fast"}, {}, "fast"),
        ({"key": "H minor"}, {}, "H minor"),
        ("drums", {"sampling": {"temprature": 1}}, "temprature: unknown field. Did you mean 'temperature'"),
        ("drums", {"sampling": {"temperature": -1}}, "temperature"),
        (3, {}, "not int"),
    ],
)
def test_refusals(system, what, fields, words):
    with pytest.raises(Exception, match=words) as error:
        system.generate(what, **fields)
    assert type(error.value).__module__ == "cadenza.core.errors"


def test_a_refusal_does_not_wait_for_the_first_chunk(system):
    with pytest.raises(RequestError):
        system.stream("drums", seconds=1e9)


def test_saved_and_loaded(system, tmp_path):
    system.save(tmp_path / "model")
    again = System.load(tmp_path / "model")
    assert again.spec == system.spec and again.card == system.card
    assert torch.equal(again.generate("drums", seed=3).wave, system.generate("drums", seed=3).wave)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    system.save(tmp_path / "model", dtype=torch.float16)  # in place of the first
    assert {x.dtype for x in load_file(tmp_path / "model" / "model.safetensors").values()} >= {torch.float16}
    System.load(tmp_path / "model")


def test_nothing_else_is_overwritten(system, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="is not a saved system"):
        system.save(tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_large_weights_are_split(system, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 20_000)
    system.save(tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    System.load(tmp_path / "model")
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=f"{len(shards) - 1} of {len(shards)} weight files"):
        System.load(tmp_path / "model")


def test_damaged_weights_are_named(system, tmp_path):
    system.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = load_file(file)
    name = next(n for n, x in whole.items() if x.is_floating_point())
    save_file({**whole, name: torch.full_like(whole[name], float("nan"))}, file)
    with pytest.raises(CheckpointError, match=f"1 weight is not finite.*: {name}"):
        System.load(tmp_path / "model")
    save_file({n: x for n, x in whole.items() if n != name}, file)
    with pytest.raises(CheckpointError, match="1 missing"):
        System.load(tmp_path / "model")
    save_file({**whole, "stranger": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="1 unknown.*stranger"):
        System.load(tmp_path / "model")
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        System.load(tmp_path / "model")
    file.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        System.load(tmp_path / "model")


def test_a_misspelt_spec_is_named(system, tmp_path):
    system.save(tmp_path / "model")
    file = tmp_path / "model" / "system.json"
    tree = json.loads(file.read_text())
    tree["generator"]["heads_"] = tree["generator"].pop("heads")
    file.write_text(json.dumps(tree))
    with pytest.raises(Exception, match="heads_: unknown field. Did you mean 'heads'"):
        System.load(tmp_path / "model")


def test_generation_under_autocast(system):
    """As training does for its audio samples."""
    with torch.autocast("cpu", torch.bfloat16):
        assert system.generate("drums", seconds=0.2).wave.isfinite().all()
