"""The drums conditioner: the same strikes from times, MIDI and a stem; JASCO's blurred latents."""

import math
from pathlib import Path
from typing import Any

import mido
import pytest
import torch

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.drums import DrumsConditioner, DrumsSpec
from cadenza.core.errors import RequestError
from cadenza.dsp.audio import Audio

CODEC = {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}


def drums(**fields: Any) -> DrumsConditioner:
    return DrumsSpec.parse({"type": "drums", "output_dim": 8, "frame_rate": 50, "max_frames": 100, **fields}).build()


def struck(value: Any, row: int) -> list[int]:
    """The frames at which a kind is struck: those at which its past strike is newest."""
    x = drums().prepare([value]).tensors["x"][0, :, row]
    newest = math.exp(-0.01 / 0.06)
    return [frame for frame in range(100) if x[frame] >= newest - 1e-4]


def test_strikes_fade_behind_and_ahead() -> None:
    x = drums().prepare([{"kick": [1.0]}]).tensors["x"][0]
    assert struck({"kick": [1.0]}, 0) == [50]
    assert x[53, 0] == pytest.approx(math.exp(-0.07 / 0.06)) and x[46, 3] == pytest.approx(math.exp(-0.07 / 0.06))
    assert x[:50, 0].sum() == 0 and x[51:, 3].sum() == 0 and x[:, [1, 2, 4, 5]].sum() == 0


def test_one_list_is_for_all() -> None:
    x = drums().prepare([[0.5, 1.0]]).tensors["x"][0]
    assert struck([0.5, 1.0], 1) == [25, 50]
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


def test_the_percussion_of_a_score(tmp_path: Path) -> None:
    track = mido.MidiTrack()
    for drum, gap in ((36, 0), (42, 240), (38, 240), (46, 240)):  # 480 a beat, two beats a second
        track.append(mido.Message("note_on", note=drum, channel=9, time=gap))
    for drum in (36, 42, 38, 46):
        track.append(mido.Message("note_off", note=drum, channel=9, time=10 if drum == 36 else 0))
    mido.MidiFile(tracks=[track], ticks_per_beat=480).save(tmp_path / "beat.mid")
    path = str(tmp_path / "beat.mid")
    assert [struck(path, row) for row in range(3)] == [[0], [25], [12, 37]]


def test_a_stem_says_when_it_is_struck() -> None:
    time = torch.arange(16000 * 2) / 16000
    wave = torch.zeros_like(time)
    for second in (0.5, 1.0, 1.5):
        after = (time - second).clamp(min=0)
        wave += torch.sin(2 * math.pi * 60 * after) * torch.exp(-18 * after) * (time >= second)
    found = drums()._times(Audio(wave[None, None], 16000))
    assert found[0] == pytest.approx([0.5, 1.0, 1.5], abs=0.02) and found[2] == []


def test_through_a_codec_groups_of_frames_are_one() -> None:
    """Fifty frames a second through a codec of a hundred: groups of three are the codec's."""
    part = drums(codec=CODEC, frame_rate=100, max_frames=12, blur=3)
    wave = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(0))
    features = part.encode(part.prepare([Audio(wave, 800)])).tensors["x"][0]
    codes = part.codec.encode(Audio(wave, 800), num_codebooks=1)
    vectors = part.codec.embed(codes)[0].T
    assert codes.ids.shape == (1, 1, 12)
    expected = vectors.unflatten(0, (4, 3)).mean(1).repeat_interleave(3, 0)
    torch.testing.assert_close(features, expected)
    assert CodecSpec.parse(CODEC) == part.spec.codec


def test_before_training_it_adds_nothing() -> None:
    part = drums()
    assert not part(part.prepare([[0.5]])).embeddings.any()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"kik": [1.0]}, "Did you mean 'kick'"),
        ([-1.0], "are the seconds"),
        (3, "are the seconds"),
        ("no.mid", "no.mid"),
        ("no.wav", "no.wav"),
    ],
)
def test_what_cannot_be_used_is_named(value: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        drums().prepare([value])


def test_a_clip_that_begins_later_has_the_strikes_of_its_piece() -> None:
    parts = ConditionerSet({"it": drums()})
    later = parts.prepare([{"it": {"kick": [0.2, 1.0, 1.5]}, "seconds_start": 0.5}])["it"].tensors["x"]
    torch.testing.assert_close(later, parts.prepare([{"it": {"kick": [0.5, 1.0]}}])["it"].tensors["x"])
