"""Audio: batches with true lengths; padding never leaks."""

import pytest
import soxr
import torch

from cadenza.core.errors import AudioError
from cadenza.dsp.audio import Audio, load_audio


def clip(samples: int, seed: int = 0, *, channels: int = 1, rate: int = 8000) -> Audio:
    wave = torch.rand(1, channels, samples, generator=torch.Generator().manual_seed(seed)) - 0.5
    return Audio(wave, rate)


def test_stack_and_iterate_are_inverse():
    clips = [clip(5), clip(9, 1), clip(1, 2)]
    batch = Audio.pad_and_stack(clips)
    assert batch.wave.shape == (3, 1, 9) and batch.lengths.tolist() == [5, 9, 1]
    assert batch.seconds.tolist() == pytest.approx([5 / 8000, 9 / 8000, 1 / 8000])
    assert not batch.wave[0, :, 5:].any()
    for before, after in zip(clips, batch, strict=True):
        assert torch.equal(before.wave, after.wave)


def test_stack_refuses_a_mixture():
    for other in (clip(5, rate=16_000), clip(5, channels=2)):
        with pytest.raises(AudioError, match="use `resample` and `to_channels` first"):
            Audio.pad_and_stack([clip(5), other])
    with pytest.raises(AudioError, match="got no clip"):
        Audio.pad_and_stack([])


def test_resample_sees_no_padding():
    batch = Audio.pad_and_stack([clip(100), clip(4000, 1)]).resample(6000)
    assert batch.lengths.tolist() == [75, 3000] and not batch.wave[0, :, 75:].any()
    alone = soxr.resample(clip(100).wave[0, 0].numpy(), 8000, 6000)
    torch.testing.assert_close(batch.wave[0, 0, :75], torch.from_numpy(alone))


def test_mix():
    stereo = clip(10, channels=2)
    torch.testing.assert_close(stereo.to_channels(1).wave[:, 0], (stereo.wave[:, 0] + stereo.wave[:, 1]) / 2)
    mono = clip(10)
    assert torch.equal(mono.to_channels(2).wave[:, 1], mono.wave[:, 0]) and mono.to_channels(1) is mono


def test_save_and_read(tmp_path):
    one = clip(100, channels=2)
    assert one.save(tmp_path / "a.wav", subtype="FLOAT") == [tmp_path / "a.wav"]
    back = load_audio(tmp_path / "a.wav")
    assert torch.equal(back.wave, one.wave) and back.sample_rate == 8000
    assert torch.equal(load_audio(tmp_path / "a.wav", 10, 5).wave, one.wave[..., 10:15])
    paths = Audio.pad_and_stack([clip(5), clip(9, 1)]).save(tmp_path / "b.flac")
    assert [path.name for path in paths] == ["b-1.flac", "b-2.flac"]
    assert [load_audio(path).wave.shape[-1] for path in paths] == [5, 9]


def test_half_precision_and_gradients_can_be_saved(tmp_path):
    Audio(torch.zeros(1, 1, 8, dtype=torch.bfloat16), 8000).save(tmp_path / "a.wav")
    Audio(torch.zeros(1, 1, 8, requires_grad=True), 8000).save(tmp_path / "b.wav")
    assert len(list(tmp_path.iterdir())) == 2
