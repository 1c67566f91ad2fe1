"""Continuation of audio, codes or files of either."""

import pytest
import torch
from tiny import tiny_system

from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, Latents
from cadenza.dsp.audio import Audio
from cadenza.system.codes_io import save_codes
from cadenza.system.request import Request
from cadenza.system.system import System


@pytest.fixture(scope="module")
def system() -> System:
    return tiny_system()


def sound(samples: int, *, rate: int = 8000, channels: int = 1, clips: int = 1) -> Audio:
    return Audio(torch.rand(clips, channels, samples, generator=torch.Generator().manual_seed(samples)) - 0.5, rate)


def ids(system: System, what: object, **fields: object) -> torch.Tensor:
    return system.generate_frames(what, **{"seconds": 0.3, "seed": 1, **fields}).data


def test_the_first_frames_are_those_given_and_the_rest_goes_on_from_them(system):
    prompt = sound(700)  # 43.75 frames: the last is filled up, as the released models do it
    codes = system.codec.encode(prompt)
    assert codes.ids.shape[-1] == 44
    made = ids(system, "drums", continue_from=prompt)
    assert torch.equal(made[..., :44], codes.ids) and made.shape[-1] == 150
    other = ids(system, "drums", continue_from=Codes(15 - codes.ids))
    assert not torch.equal(made[..., 44:], other[..., 44:]) and not torch.equal(made[..., 44:], ids(system, "drums")[..., 44:])
    assert torch.equal(made, ids(system, "drums", continue_from=codes))


def test_going_on_from_what_was_generated_is_generating_it(system):
    whole = system.generate_frames("drums", seconds=0.3, seed=1, sampling={"temperature": 0})
    begun = Codes(whole.ids[..., :40])
    again = system.generate_frames("drums", seconds=0.3, seed=5, sampling={"temperature": 0}, continue_from=begun)
    assert torch.equal(whole.ids, again.ids)


def test_files_of_audio_and_of_codes(system, tmp_path):
    prompt = sound(640)
    prompt.save(tmp_path / "hum.wav", subtype="FLOAT")
    save_codes(tmp_path / "hum.safetensors", system.codec.encode(prompt), system.spec.codec)
    want = ids(system, "drums", continue_from=prompt)
    assert torch.equal(ids(system, "drums", continue_from=str(tmp_path / "hum.wav")), want)
    assert torch.equal(ids(system, "drums", continue_from=tmp_path / "hum.safetensors"), want)


def test_audio_of_another_kind_is_resampled_and_mixed(system):
    prompt = sound(1600, rate=24000, channels=2)
    want = ids(system, "drums", continue_from=prompt.resample(8000).to_channels(1))
    assert torch.equal(ids(system, "drums", continue_from=prompt), want)


def test_without_the_prompt_is_what_follows_it(system):
    fields = {"seconds": [0.3, 0.25, 0.2], "seed": [1, 2, 3], "continue_from": [sound(640), None, sound(320)]}
    items = ["drums", {}, {"prompt": "piano", "tempo": 90}]
    whole = list(system.generate(items, **fields))
    rest = system.generate(items, **fields, include_prompt=False)
    assert rest.lengths.tolist() == [2400 - 640, 2000, 1600 - 320]
    for one, all_, skip in zip(rest, whole, (640, 0, 320), strict=True):
        assert torch.equal(one.wave, all_.wave[..., skip:])
    frames = system.generate_frames(items, **fields, include_prompt=False)
    assert frames.lengths.tolist() == [110, 125, 80] and frames.samples.tolist() == rest.lengths.tolist()
    kept = system.generate_frames(items, **fields)
    assert torch.equal(frames.data[2, :, :80], kept.data[2, :, 20:100])
    assert torch.equal(system.codec.decode(kept).wave[0], whole[0].wave[0])


@pytest.mark.parametrize("include_prompt", [True, False])
def test_the_stream_gives_the_same_samples(system, include_prompt):
    fields = {"seconds": [0.4, 0.3], "seed": 4, "continue_from": [sound(1300), None], "include_prompt": include_prompt}
    chunks = list(system.stream(["drums", "piano"], **fields))
    for i, clip in enumerate(system.generate(["drums", "piano"], **fields)):
        streamed = torch.cat([chunk.wave[i, :, : int(chunk.lengths[i])] for chunk in chunks], -1)
        torch.testing.assert_close(streamed, clip.wave[0], atol=1e-5, rtol=1e-4)


def test_one_for_all_or_one_each_alone_and_in_any_batch(system):
    prompts = sound(640, clips=2)
    both = system.generate_frames(["drums", "piano"], seconds=0.3, seed=[1, 2], continue_from=prompts).data
    first, second = list(prompts)
    assert torch.equal(ids(system, "drums", continue_from=first), both[:1])
    assert torch.equal(ids(system, "piano", continue_from=second, seed=2), both[1:])
    shared = system.generate_frames(["drums", "piano"], seconds=0.3, seed=1, continue_from=first).data
    assert torch.equal(shared[0], shared[1]) is False and torch.equal(shared[0, :, :40], shared[1, :, :40])
    varied = system.generate_frames("drums", seconds=0.3, seed=1, variations=2, continue_from=first).data
    assert torch.equal(varied[:1], both[:1])


def test_going_on_in_windows():
    """Frames beyond a window continue the prompt's own continuation."""
    system = tiny_system(max_frames=100)
    fields = {"seconds": 0.26, "seed": 3, "continue_from": sound(800), "sampling": {"temperature": 0}}
    long = system.generate_frames("drums", **fields, stride=0.15).data
    short = system.generate_frames("drums", **{**fields, "seconds": 0.2}).data
    assert torch.equal(long[..., :100], short) and long.shape[-1] == 130
    tail = {**fields, "seconds": 0.11, "continue_from": Codes(short[..., 75:])}
    assert torch.equal(system.generate_frames("drums", **tail).data, long[..., 75:])


@pytest.mark.parametrize(
    "given, fields, words",
    [
        (sound(2400), {}, "clip 1 lasts 0.3 seconds, and the clip 0.3 with it; set `seconds` to more than 0.3"),
        (sound(20000), {"seconds": 4}, "lasts 2.5 seconds, but the context of this model is 2; give no more than its last 2"),
        (Codes(torch.zeros(1, 3, 9, dtype=torch.long)), {}, "3 rows of codes are given.*2 rows of codes"),
        (Latents(torch.zeros(1, 2, 9)), {}, "2 rows of latents are given"),
        (Codes(torch.full((1, 2, 9), 16)), {}, "codes must lie between 0 and 15"),
        (Codes(torch.zeros(1, 2, 0, dtype=torch.long)), {}, "no frames"),
        (Audio(torch.zeros(1, 1, 0), 8000), {}, "no samples"),
        (Audio(torch.full((1, 1, 800), torch.nan), 8000), {}, "NaN"),
        (sound(640, clips=3), {}, "continue_from has 3 values for 1 items"),
        ([sound(640), sound(640)], {}, "continue_from has 2 values for 1 items"),
        ([sound(640, clips=2)], {}, "2 clips are given for one"),
        (3.0, {}, "Audio, Codes or the path of a file, or a list of these, not float"),
        ("nowhere.wav", {}, "nowhere.wav"),
        ("nowhere.safetensors", {}, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_gone_on_from_is_named(system, given, fields, words):
    with pytest.raises(Exception, match=words) as error:
        system.generate_frames("drums", **{"seconds": 0.3, "continue_from": given, **fields})
    assert type(error.value).__module__ == "cadenza.core.errors"


def test_one_for_each_variation():
    request = Request.from_input(["a", "b"], continue_from=["x.wav", None], variations=2)
    assert [clip.continue_from for clip in request.expand()] == ["x.wav", "x.wav", None, None]
    with pytest.raises(RequestError, match="not dict"):
        Request.from_input("a", continue_from={"path": "x.wav"})
