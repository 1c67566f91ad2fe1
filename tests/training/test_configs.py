"""The published trainings: what their configs describe, in full size without weights, and two steps of each at a small one."""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_loop import lines
from transformers import EncodecConfig

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.t5 import T5Spec
from cadenza.data.music_metadata import PromptMixer
from cadenza.dsp.audio import Audio
from cadenza.importers import encodec
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System
from cadenza.training.config import TrainingConfig, resolve_config
from cadenza.training.optim import lr_multiplier
from cadenza.training.trainer import Trainer

FOLDER = Path(__file__).parents[2] / "configs" / "training"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LANGUAGE = [name for name in NAMES if not name.startswith("encodec")]
CODECS = [name for name in NAMES if name.startswith("encodec")]

# What was published: millions of weights of language model and text projection, or of the codec without its codebooks
# (arXiv:2306.05284 and the checkpoints); the T5 and its width; seconds, frames, codes at once; items and steps.
WEIGHTS = {
    "musicgen_small_32khz": 420, "musicgen_medium_32khz": 1840, "musicgen_large_32khz": 3260, "musicgen_melody_32khz": 1390,
    "musicgen_stereo_32khz": 420 + 17, "audiogen_16khz": 1840, "encodec_24khz": 14.9, "encodec_32khz": 56.9,
    "encodec_48khz": 14.9,
}  # fmt: skip
LEARNED = {  # steps, items a step, seconds, learning rate, clip, guidance dropout, word dropout
    "musicgen_small_32khz": (1_000_000, 192, 30, 1e-4, 1.0, 0.3, 0.3),
    "musicgen_medium_32khz": (1_000_000, 192, 30, 1e-4, 1.0, 0.3, 0.3),
    "musicgen_large_32khz": (1_000_000, 192, 30, 1e-4, 3.0, 0.2, 0.2),
    "musicgen_melody_32khz": (1_000_000, 192, 30, 1e-4, 1.0, 0.2, 0.2),
    "musicgen_stereo_32khz": (200_000, 192, 30, 1e-4, 1.0, 0.3, 0.3),
    "audiogen_16khz": (200_000, 128, 10, 5e-4, 1.0, 0.1, 0.0),
}
RELEASED: dict[str, dict[str, Any]] = {  # how the config.json of the released codecs differs from transformers' default
    "encodec_24khz": {},
    "encodec_32khz": {
        "sampling_rate": 32000, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
        "target_bandwidths": [2.2], "use_causal_conv": False, "use_conv_shortcut": False,
    },
    "encodec_48khz": {
        "sampling_rate": 48000, "audio_channels": 2, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "normalize": True,
        "norm_type": "time_group_norm", "use_causal_conv": False, "chunk_length_s": 1.0, "overlap": 0.01,
    },
}  # fmt: skip


def config(name: str) -> TrainingConfig:
    return TrainingConfig.load(FOLDER / f"{name}.yaml")


def codec_of(spec: SystemSpec) -> Any:
    """The codec of one channel."""
    return getattr(spec.codec, "codec", spec.codec)


def test_everything_published_has_a_config() -> None:
    assert set(NAMES) == set(WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_as_many_as_published(name: str) -> None:
    with torch.device("meta"):
        system = System(config(name).system)
    parts = [system.codec] if system.generator is None else [system.generator, system.conditioners]
    millions = sum(p.numel() for part in parts for p in part.parameters()) / 1e6
    assert millions == pytest.approx(WEIGHTS[name], abs=0.05 if name in CODECS else 5)


@pytest.mark.parametrize("name", LANGUAGE)
def test_what_a_language_model_learns_from(name: str) -> None:
    chosen = config(name)
    steps, items, seconds, lr, clip, guidance, words = LEARNED[name]
    assert (chosen.steps, chosen.batch * chosen.accumulation, chosen.seconds) == (steps, items, seconds)
    assert (chosen.lr, chosen.betas, chosen.weight_decay, chosen.grad_clip) == (lr, (0.9, 0.95), 0.1, clip)
    assert chosen.ema == pytest.approx(0.99 ** (1 / 10), abs=1e-5)  # 0.99 at every tenth step
    dropped = {"melody": 0.5} if "melody" in name else 0.0
    assert chosen.task.to_dict() == {"type": "generator", "cfg_dropout": guidance, "attribute_dropout": dropped}
    assert chosen.music == (
        None if name.startswith("audiogen") else PromptMixer(merge=0.25, drop_description=0.5, keep_field=0.5, exact=True)
    )
    spec: Any = chosen.system
    assert spec.conditioners["prompt"].word_dropout == words
    assert spec.conditioners["prompt"].dim == {True: 1024, False: 768}["large" in spec.conditioners["prompt"].model]
    sides = spec.codec.channels
    assert (spec.codec.frame_format.frame_rate, spec.codec.frame_format.channels, spec.codec.frame_format.cardinality) == (
        50,
        4 * sides,
        2048,
    )
    assert spec.generator.max_frames == seconds * 50 and spec.generator.width == 64 * spec.generator.heads
    assert spec.generator.pattern.delays == tuple(k // sides for k in range(4 * sides))
    assert not spec.generator.end_of_sequence and spec.generator.positions == "sinusoidal"


def test_the_learning_rates_go_as_published() -> None:
    small, sounds, codec = config("musicgen_small_32khz"), config("audiogen_16khz"), config("encodec_32khz")
    assert [lr_multiplier(step, small) for step in (0, 3999, 502_000, 1_000_000)] == pytest.approx(
        [1 / 4000, 1, 0.5, 0], abs=1e-9
    )
    assert [lr_multiplier(step, sounds) for step in (2999, 11_999, 74_999)] == pytest.approx([1, 0.5, 0.2])
    assert [lr_multiplier(step, codec) for step in (0, 100_000, 399_999)] == [1, 1, 1]


@pytest.mark.parametrize("name", CODECS)
def test_what_a_codec_learns_from(name: str) -> None:
    chosen = config(name)
    paper = name == "encodec_48khz"  # the others are AudioCraft's
    assert (chosen.steps, chosen.batch * chosen.accumulation, chosen.seconds) == (600_000 if paper else 400_000, 64, 1)
    assert (chosen.lr, chosen.betas, chosen.weight_decay, chosen.grad_clip, chosen.ema) == (3e-4, (0.5, 0.9), 0, None, 0.99)
    task: Any = chosen.task
    weights = (task.l1, task.mel, task.adversarial, task.feature, task.commitment)
    assert weights == ((0.1, 1, 4, 4, 1) if paper else (0.1, 2, 4, 4, 1)) and not task.stft
    assert task.mel_windows == tuple(2**i for i in (range(5, 12) if paper else range(6, 11)))
    assert task.quantizer_dropout == (0.0 if name == "encodec_32khz" else 1.0)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_codecs_can_be_the_start(name: str) -> None:
    released = encodec.spec_from_transformers(EncodecConfig(**RELEASED[name]).to_dict(), source="config.json")
    users = [user for user in LANGUAGE if "32khz" in user] if name == "encodec_32khz" else []
    assert [codec_of(config(user).system) for user in [name, *users]] == [released] * (1 + len(users))


def test_the_codec_of_audiogen_is_what_the_head_of_a_config_says() -> None:
    head = (FOLDER / "encodec_32khz.yaml").read_text().partition("For the codec of AudioGen:")[2].partition("# Differences")[0]
    words = shlex.split(head.replace("\n#", ""))
    assert set(words[::2]) == {"--set"}
    settings = words[1::2]
    changed = resolve_config(FOLDER / "encodec_32khz.yaml", settings, {})
    assert changed.system.codec == config("audiogen_16khz").system.codec and changed.name == "encodec-16khz"


def test_the_stereo_codec_is_made_as_the_head_of_its_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mono = {**config("encodec_32khz").system.codec.to_dict(), "filters": 2, "dimension": 4, "bins": 16, "bandwidths": []}
    torch.manual_seed(0)
    System(SystemSpec.parse({"codec": mono})).save("encodec")
    head = (FOLDER / "musicgen_stereo_32khz.yaml").read_text().partition("name:")[0].splitlines()
    exec("\n".join(line.removeprefix("#   ") for line in head if line.startswith(("#   from", "#   spec", "#   stereo"))))
    sides = torch.randn(1, 2, 6400)
    codes = System.load("encodec-stereo").codec.encode(Audio(sides, 32000)).ids
    each = System.load("encodec").codec.encode(Audio(sides.transpose(0, 1), 32000)).ids
    assert torch.equal(codes[0, 0::2], each[0]) and torch.equal(codes[0, 1::2], each[1])


QUICK: dict[str, Any] = {
    "steps": 2, "batch": 2, "workers": 0, "log_every": 1, "validation_items": 1, "sample_items": 0, "trackers": [],
    "precision": "fp32",
}  # fmt: skip


def folder_of_sound(folder: Path, codec: CodecSpec) -> Path:
    """Five clips of 0.6 s with a text."""
    folder.mkdir()
    for i in range(5):
        t = np.arange(round(0.6 * codec.sample_rate)) / codec.sample_rate
        wave = 0.3 * np.sin(2 * math.pi * 150 * 2**i * t)
        soundfile.write(folder / f"{i}.wav", np.stack([wave] * codec.channels, 1), codec.sample_rate)
        (folder / f"{i}.txt").write_text(f"piano {i}")
    return folder


@pytest.mark.parametrize("name", LANGUAGE)
def test_two_steps_of_a_language_model(name: str, tmp_path: Path) -> None:
    codec = "system.codec.codec" if "stereo" in name else "system.codec"
    settings = [f"{codec}.{field}" for field in ("filters=2", "dimension=4", "bins=16", "bandwidths=[]")]
    settings += [f"system.generator.{field}" for field in ("width=16", "depth=2", "heads=2")]
    settings += [
        f"system.conditioners.prompt.{field}" for field in (f"model={T5Spec.example()[0].model}", "dim=16", "output_dim=16")
    ]
    if "melody" in name:
        settings += [f"system.conditioners.melody.{field}" for field in ("output_dim=16", "stems=null", "max_frames=9")]
    small = resolve_config(FOLDER / f"{name}.yaml", settings, {**QUICK, "accumulation": 2, "seconds": 0.5})
    torch.manual_seed(0)
    System(SystemSpec.parse({"codec": small.system.codec.to_dict()})).save(tmp_path / "codec")
    data = folder_of_sound(tmp_path / "sound", small.system.codec)
    trainer = Trainer(small, data, out=tmp_path / "run", cpu=True, init_from=str(tmp_path / "codec"))
    assert trainer.train().reason == "finished"
    records = [*lines(tmp_path / "run").values(), *lines(tmp_path / "run", "valid").values()]
    losses = [record.get("generator/loss", record.get("loss")) for record in records]
    assert losses == pytest.approx([math.log(16)] * 3, abs=0.1)  # it has not learned yet what is likely
    assert 0 < records[0]["generator/gradient"] < math.inf
    made = System.load(tmp_path / "run" / "final").generate("piano", seconds=0.1)
    assert made.wave.shape == (1, small.system.codec.channels, round(0.1 * small.system.codec.sample_rate))


@pytest.mark.parametrize("name", CODECS)
def test_two_steps_of_a_codec(name: str, tmp_path: Path) -> None:
    settings = [f"system.codec.{field}" for field in ("filters=2", "dimension=4", "bins=16", "codebooks=3", "bandwidths=[]")]
    small = resolve_config(FOLDER / f"{name}.yaml", [*settings, "task.discriminator_filters=2"], {**QUICK, "seconds": 0.2})
    torch.manual_seed(0)
    trainer = Trainer(small, folder_of_sound(tmp_path / "sound", small.system.codec), out=tmp_path / "run", cpu=True)
    assert trainer.train().reason == "finished"
    first, second = lines(tmp_path / "run").values()
    shares = {"l1", "mel", "adversarial", "feature"}
    assert {f"codec/share_{name}" for name in shares} <= first.keys() and "discriminator/loss" in first
    assert first["discriminator/loss"] == pytest.approx(2, abs=0.3)  # hinge: of no opinion yet
    assert "codec/commitment" not in first and second["codec/commitment"] >= 0  # k-means stands between
    assert all(math.isfinite(value) for value in [*first.values(), *second.values()])
    system = System.load(tmp_path / "run" / "final")
    assert System.load(tmp_path / "run" / "best").spec == system.spec and system.codec.frame_format.channels == 3
