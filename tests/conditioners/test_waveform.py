"""The waveform and source_mix conditioners: their input audio and the source of their codec."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.conditioners.base import ConditionerSet, ConditionerSpec
from cadenza.conditioners.source_mix import SourceMixConditioner, SourceMixSpec
from cadenza.conditioners.waveform import WaveformConditioner, WaveformSpec
from cadenza.core.errors import CheckpointError, RequestError, SpecError
from cadenza.core.types import Codes, Condition, Latents
from cadenza.dsp.audio import Audio
from cadenza.system import store
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

ENCODEC = {"type": "encodec", "sample_rate": 800, "strides": [4, 2], "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
OOBLECK = OobleckSpec.example().to_dict()  # stereo, 8 samples a frame, 4 numbers


def noise(samples: int, *, rate: int = 800, channels: int = 1) -> Audio:
    rng = torch.Generator().manual_seed(samples)
    return Audio(0.3 * torch.randn(1, channels, samples, generator=rng), rate)


def waveform(**fields: Any) -> WaveformConditioner:
    torch.manual_seed(0)
    return (
        WaveformSpec.parse({"type": "waveform", "output_dim": 4, "codec": ENCODEC, "project": "auto", **fields}).build().eval()
    )


def mix(**fields: Any) -> SourceMixConditioner:
    torch.manual_seed(0)
    spec = {"type": "source_mix", "output_dim": 5, "codec": OOBLECK, "sources": ["drums", "bass", "other"], **fields}
    return SourceMixSpec.parse(spec).build().eval()


@torch.no_grad()
def run(part: Any, values: list[Any]) -> Condition:
    return part(part.encode(part.prepare(values)))


def test_frames_follow_from_true_lengths() -> None:
    part = waveform()
    assert (part.spec.sample_rate, part.spec.hop, part.spec.output_kind) == (800, 8, "frames")
    made = run(part, [noise(24), noise(41), None])
    assert made.mask.sum(1).tolist() == [3, 6, 0] and made.embeddings.shape == (3, 6, 4)
    assert not made.embeddings[0, 3:].any(), "what pads is nothing"


def test_codes_are_heard_as_what_their_codebooks_hold() -> None:
    part = waveform()
    audio = noise(40)
    codes = part.codec.encode(audio)
    assert isinstance(codes, Codes)
    levels: Any = part.codec.quantizer.levels
    tables = [level.embed for level in levels]
    expected = sum(table[ids] for table, ids in zip(tables, codes.ids[0], strict=True))
    torch.testing.assert_close(run(part, [audio]).embeddings[0], expected)


def test_latents_are_heard_as_they_are() -> None:
    part = waveform(codec=OOBLECK)
    audio = noise(64, rate=8000, channels=2)
    torch.testing.assert_close(run(part, [audio]).embeddings[0], part.codec.encode(audio).z[0].T)


def test_sounds_are_heard_at_the_rate_of_the_codec(tmp_path: Path) -> None:
    """Two channels are mixed to its one, and a file is as good as what is in it."""
    part = waveform(output_dim=3, project="always")
    audio = noise(1600, rate=1600, channels=2)
    audio.save(tmp_path / "a.wav", subtype="FLOAT")
    expected = run(part, [audio.resample(800).to_channels(1)])
    for value in (audio, tmp_path / "a.wav", str(tmp_path / "a.wav")):
        torch.testing.assert_close(run(part, [value]).embeddings, expected.embeddings, atol=1e-5, rtol=1e-4)
    assert expected.embeddings.shape == (1, 100, 3)
    for wrong, what in (
        (3, "expected Audio or the path"),
        (Audio(torch.zeros(2, 1, 9), 800), "expected one clip for each item"),
    ):
        with pytest.raises(RequestError, match=what):
            part.prepare([wrong])


def test_sounds_are_cut_or_followed_by_nothing_where_frames_are_set() -> None:
    part = waveform(max_frames=5)
    made = run(part, [noise(80), noise(16)])
    assert made.embeddings.shape == (2, 5, 4) and made.mask.sum(1).tolist() == [5, 2]
    torch.testing.assert_close(made.embeddings[0], run(waveform(), [Audio(noise(80).wave[..., :40], 800)]).embeddings[0])
    longer = part.with_max_frames(9)
    assert part.with_max_frames(4) is part and longer.preprocess([noise(16)])["wave"].shape == (1, 9, 1, 8)
    torch.testing.assert_close(run(longer, [noise(80)]).embeddings[0, :9].shape, torch.Size([9, 4]))
    given = waveform(max_frames=5, input_kind="frames")
    assert run(given, [torch.ones(4, 7), torch.ones(4, 2)]).mask.sum(1).tolist() == [5, 2]


def test_frames_may_be_given() -> None:
    heard, told = waveform(), waveform(input_kind="frames")
    assert not [name for name in told.state_dict() if name.startswith("codec")]
    audio = noise(40)
    z = heard.codec.embed(heard.codec.encode(audio))
    for value in (z[0], Latents(z), Latents(torch.nn.functional.pad(z, (0, 3)), torch.tensor([5]))):
        torch.testing.assert_close(run(told, [value, None]).embeddings[0], run(heard, [audio]).embeddings[0])
    for wrong in (audio, torch.zeros(3, 5), torch.zeros(4, 0), torch.full((4, 2), torch.nan), 1):
        with pytest.raises(
            RequestError, match=r"finite frames of a codec are needed, Latents of one clip or a tensor \[4, f\]"
        ):
            told.prepare([wrong])


@pytest.mark.parametrize("kind", ["waveform", "source_mix"])
@pytest.mark.parametrize("shards", [False, True])
def test_the_codec_is_that_of_a_saved_system(tmp_path: Path, kind: str, shards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    saved = System(SystemSpec.parse({"codec": ENCODEC}))
    monkeypatch.setattr(store, "SHARD_BYTES", 2000 if shards else store.SHARD_BYTES)
    saved.save(tmp_path / "codec")
    assert (len(list((tmp_path / "codec").glob("*.safetensors"))) > 1) == shards
    fields: dict[str, Any] = {"codec": ENCODEC, "model": str(tmp_path / "codec")}
    part = waveform(**fields) if kind == "waveform" else mix(**fields)
    before = {name: x.clone() for name, x in part.codec.state_dict().items()}
    assert any(not torch.equal(x, before[name]) for name, x in saved.codec.state_dict().items())
    part.prepare_training([])
    assert all(torch.equal(x, saved.codec.state_dict()[name]) for name, x in part.codec.state_dict().items())
    assert not any(x.requires_grad for x in part.codec.parameters())
    kept = part.save_assets(tmp_path, "conditioners/it")
    assert str(tmp_path) not in kept.to_json() and ConditionerSpec.parse(json.loads(kept.to_json())).build()
    other = {**ENCODEC, "bins": 8}
    with pytest.raises(CheckpointError, match="differs from this one; use the `codec` of its system.json"):
        (waveform if kind == "waveform" else mix)(**{**fields, "codec": other}).prepare_training([])
    with pytest.warns(UserWarning, match=f"the codec of a `{kind}` conditioner has random weights and is frozen; set `model`"):
        (waveform if kind == "waveform" else mix)(codec=ENCODEC).prepare_training([])


def test_a_system_keeps_the_codec_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = System(
        SystemSpec.parse(
            {
                "codec": ENCODEC,
                "conditioners": {"melody": {"type": "waveform", "output_dim": 8, "codec": ENCODEC}},
                "fusion": {"cross": ["melody"]},
                "generator": {"type": "codec_lm", "width": 8, "depth": 1, "heads": 2},
            }
        )
    ).eval()
    system.save(tmp_path / "saved")
    again = System.load(tmp_path / "saved")
    item = {"melody": noise(80)}
    one, other = (each.encode_conditions(each.prepare([item]))["melody"] for each in (system, again))
    torch.testing.assert_close(one.embeddings, other.embeddings, atol=0, rtol=0)
    assert len(again.generate(item, seconds=0.05, seed=0)) == 1


def test_each_source_has_a_head_of_its_own() -> None:
    part = mix()
    drums, bass = (noise(samples, rate=8000, channels=2) for samples in (64, 40))
    made = run(part, [{"drums": drums, "bass": bass}, {"other": bass, "drums": None}, {}, None])
    assert made.present.tolist() == [True, True, False, False]
    assert made.mask.sum(1).tolist() == [8, 5, 0, 0]
    z = [part.codec.encode(audio).z[0].T for audio in (drums, bass)]
    heads = [(head.weight.detach(), head.bias.detach()) for head in part.heads]
    expected = z[0] @ heads[0][0].T + heads[0][1]
    expected[:5] += z[1] @ heads[1][0].T + heads[1][1]
    torch.testing.assert_close(made.embeddings[0], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.embeddings[1, :5], z[1] @ heads[2][0].T + heads[2][1], atol=1e-6, rtol=1e-5)
    told = mix(input_kind="frames")
    told.load_state_dict({name: x for name, x in part.state_dict().items() if not name.startswith("codec.")})
    torch.testing.assert_close(run(told, [{"drums": z[0].T, "bass": z[1].T}]).embeddings[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ({"drum": noise(8)}, r"no source called 'drum'. Did you mean 'drums'\?"),
        (noise(8), r"a mapping of sources to sounds is needed, such as \{'drums': ...\}"),
        ({"drums": 3}, "expected Audio or the path"),
    ],
)
def test_sources_are_known_by_name(value: Any, mistake: str) -> None:
    with pytest.raises(RequestError, match=mistake):
        mix().prepare([value])


def test_refuses_specs_that_make_no_frames() -> None:
    chunked = {**ENCODEC, "chunk_seconds": 1.0}
    for make in (waveform, mix):
        with pytest.raises(SpecError, match="its frames belong to overlapping chunks"):
            make(codec=chunked)
    with pytest.raises(SpecError, match="'a' is named twice"):
        mix(sources=["a", "b", "a"])


@pytest.mark.parametrize("kind", ["waveform", "source_mix"])
def test_what_the_codec_makes_is_kept(tmp_path: Path, kind: str) -> None:
    """Each sound once, whatever it was batched with; another codec's frames are others."""
    part = waveform() if kind == "waveform" else mix(codec=ENCODEC)
    sounds = [noise(24), noise(41)]
    values: list[Any] = sounds if kind == "waveform" else [{"drums": sounds[0]}, {"drums": sounds[1], "bass": sounds[0]}]
    parts, cache = ConditionerSet({"it": part}), FeatureCache(tmp_path)
    items = [{"it": value} for value in values]
    assert part.cache_fingerprint() is not None
    for batch, made in ((items, 2), (items[::-1], 2), (items[:1], 2)):
        kept = parts(cache.encode(parts, parts.prepare(batch), "cpu"))["it"]
        assert cache.made == made
        expected = parts(parts.encode(parts.prepare(batch)))["it"]
        assert torch.equal(kept.mask, expected.mask)
        torch.testing.assert_close(kept.embeddings, expected.embeddings, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        part.codec.quantizer.levels[0].embed.mul_(2)
    cache.encode(parts, parts.prepare(items), "cpu")
    assert cache.made == 4
    cache.close()
    assert (waveform(input_kind="frames") if kind == "waveform" else mix(input_kind="frames")).cache_fingerprint() is None


@pytest.mark.parametrize("given", ["audio", "frames"])
def test_absence_needs_no_sound(given: str) -> None:
    """Also of a part that was built where there are no numbers."""
    with torch.device("meta"):
        part = waveform(input_kind=given)
    part = part.to_empty(device="cpu")
    prepared = part.prepare([None, None])
    assert not prepared.present.any() and not any(x.is_meta for x in prepared.tensors.values())
