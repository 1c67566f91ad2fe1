"""Makes what release 0.1 saved, in its format 1, with what it generates and how its training runs go on.

Run at commit 11bfed3, from `tests/golden/format1`, into which it writes; later releases cannot write that format again:
    python ../make_format1.py [systems] [runs] [starter]
"""
# pyright: reportMissingImports=false

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import format1  # noqa: I001

from cadenza import System, SystemSpec, Trainer, load, read
from cadenza.conditioners import clap, t5
from cadenza.data.encode import encode
from cadenza.data.source import manifest_of
from cadenza.nn.unfilled import unfilled
from cadenza.system.card import Card
from cadenza.system.codes import write_codes

CODEC: dict[str, Any] = {
    "type": "encodec", "sample_rate": 1600, "strides": [4, 4], "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4,
}  # fmt: skip
SMALL = {**CODEC, "strides": [16], "residual_layers": 0, "codebooks": 2}
LATER: dict[str, Any] = {  # every field that is written only where it is used
    **CODEC, "codebooks": 3, "widths": [2, 4, 6], "residual_layers": [1, 2], "causal": False, "pad_mode": "reflect",
    "lstm_layers": 1, "last_kernel": 5, "norm": "time_group_norm", "normalize": True, "chunk_seconds": 0.1,
    "chunk_overlap": 0.05, "bandwidths": [0.4, 1.2],
}  # fmt: skip
FRAMES = {"frame_rate": 100, "frames": 30}


def controls(place: Path) -> dict[str, Any]:
    """Conditioners of symbols; adaLN, rotary positions, sinusoids on what `cross` holds."""
    return {
        "codec": CODEC,
        "conditioners": {
            "prompt": {"type": "text", "width": 8, "absent": "zeros", "vocabulary": 280, "dim": 8, "depth": 1, "heads": 2},
            "caption": {"type": "t5", "model": _t5(place / "t5"), "width": 8, "empty": "read", "word_dropout": 0.2},
            "words": {"type": "lut", "width": 8, "tokenizer": {"type": "words", "bins": 32}, "dim": 6, "empty": "read"},
            "said": {"type": "clap", "model": _clap(place / "clap"), "width": 8, "reads": "text", "layer": -1, "empty": "read"},
            "lyrics": {"type": "phoneme", "width": 8, "max_length": 16, "project": True},
            "tempo": {"type": "beats", "width": 8, **FRAMES, "hidden": 4, "fallback": "bpm"},
            "chords": {"type": "chords", "width": 8, **FRAMES, "known": ["C", "Am", "F"], "bar": 0.1, "hidden": 8},
            "melody": {"type": "melody", "width": 8, **FRAMES, "low": 55, "high": 70, "hide_octave": 0.6, "hidden": 8},
            "drums": {"type": "drums", "width": 8, **FRAMES, "hidden": 8},
            "genre": {"type": "category", "width": 4, "values": ["house", "drum'n'bass"], "aliases": {"dnb": "drum'n'bass"},
                      "unknown": "learned"},
            "bars": {"type": "int", "width": 3, "min": 1, "max": 8},
            "loudness": {"type": "number", "width": 8, "min": 0, "max": 1, "bands": 4, "frequencies": "learned"},
            "vector": {"type": "encoded", "width": 8, "dim": 3, "kind": "tokens"},
            "seconds_total": {"type": "number", "width": 8, "min": 1, "max": 60, "log": True},
        },
        "reads": [
            {"of": "prompt", "to": "tempo", "pattern": r"(\d+) bpm"},
            {"of": "caption", "to": "genre", "pattern": r"of the (\w+)"},
        ],
        "fusion": {
            "cross": ["prompt", "caption", "words", "said", "lyrics", "vector"],
            "prepend": [{"id": "loudness", "guided": False}],
            "add": [{"id": "tempo", "resize": "linear"}, {"id": "chords", "resize": "nearest", "align": "steps"}, "melody"],
            "concat": [{"id": "drums", "resize": "cut"}],
            "global": ["genre", "bars"],
            "ignore": ["seconds_total"],
        },
        "generator": {
            "type": "codec_lm", "width": 8, "depth": 2, "heads": 2, "mlp": 2.0, "context": 40, "cross_positions": 0.5,
        },
        "defaults": {"seconds": 0.3, "guidance": 2.0, "sampling": {"top_k": 12, "may_end": False}, "stride": 0.25},
    }  # fmt: skip


def references(place: Path) -> dict[str, Any]:
    """Conditioners of sounds and frames; sinusoidal positions, a pattern of two blocks."""
    return {
        "codec": CODEC,
        "conditioners": {
            "heard": {"type": "clap", "model": _clap(place / "clap"), "width": 8, "reads": "both", "first": "audio",
                      "text_probability": 0.5, "stride": 0.25},
            "style": {"type": "style", "width": 8, "codec": SMALL, "hidden": 8, "depth": 1, "heads": 2, "levels": 3, "bins": 8,
                      "used": 2, "every": 5, "seconds": 0.25, "lasting": [0.1, 0.3], "normalize": True},
            "hum": {"type": "chroma", "width": 8, "sample_rate": 1600, "window": 128, "hop": 64, "frames": 8, "short": "mask"},
            "beat": {"type": "drums", "width": 8, **FRAMES, "codec": SMALL, "blur": 2, "hidden": 4},
            "like": {"type": "waveform", "width": 8, "codec": SMALL, "frames": 30, "absent": "zeros"},
            "frames": {"type": "waveform", "width": 8, "codec": {"type": "oobleck", **VAE}, "given": "frames", "frames": 30},
            "tokens": {"type": "codes", "width": 8, **FRAMES, "codebooks": 2, "bins": 16, "rate": 50},
            "stems": {"type": "source_mix", "width": 8, "sources": ["drums", "bass"], "codec": SMALL},
            "parts": {"type": "source_mix", "width": 8, "sources": ["drums"], "codec": {"type": "oobleck", **VAE},
                      "given": "frames"},
        },
        "fusion": {
            "cross": ["style", "heard", "stems"],
            "prepend": ["hum"],
            "add": [{"id": "beat", "resize": "nearest"}, {"id": "tokens", "resize": "cut"}],
            "concat": [{"id": "like", "resize": "cut"}, {"id": "frames", "resize": "nearest"},
                       {"id": "parts", "resize": "linear"}],
        },
        "generator": {
            "type": "codec_lm", "width": 8, "depth": 1, "heads": 2, "mlp": 3.0, "context": 30, "positions": "sinusoidal",
            "pattern": {"type": "unroll", "flattening": [0, 1], "delays": [0, 1]}, "bias": True, "norm_eps": 1e-4,
            "attend_padding": True, "dropout": 0.1,
        },
    }  # fmt: skip


VAE = {
    "sample_rate": 1600, "channels": 1, "latent": 4, "scale": 0.5,
    "encoder": {"strides": [4, 4], "filters": 2, "multiples": [1, 2]},
}  # fmt: skip


def stereo(place: Path) -> dict[str, Any]:
    return {
        "codec": {"type": "stereo", "codec": SMALL},
        "conditioners": {"tempo": {"type": "number", "width": 8, "min": 40, "max": 200}},
        "fusion": {"cross": ["tempo"]},
        "generator": {
            "type": "codec_lm", "width": 8, "depth": 1, "heads": 2, "mlp": 2.0, "context": 40, "end_of_sequence": False,
            "pattern": {"type": "delay", "delays": [0, 0, 1, 1]},
        },
    }  # fmt: skip


def int8(place: Path) -> dict[str, Any]:
    """An LSTM in the codec, a frozen T5, adaLN."""
    return {
        "codec": {**CODEC, "lstm_layers": 2},
        "conditioners": {
            "prompt": {"type": "text", "width": 8, "vocabulary": 280, "dim": 8, "depth": 1, "heads": 2},
            "caption": {"type": "t5", "model": _t5(place / "t5"), "width": 8},
            "tempo": {"type": "number", "width": 32, "min": 40, "max": 200},
        },
        "fusion": {"cross": ["prompt", "caption"], "global": ["tempo"]},
        "generator": {"type": "codec_lm", "width": 32, "depth": 1, "heads": 2, "mlp": 1.0, "context": 40},
    }


def int4(place: Path) -> dict[str, Any]:
    whole = int8(place)
    conditioners = {name: part for name, part in whole["conditioners"].items() if name != "caption"}
    return {**whole, "conditioners": conditioners, "fusion": {"cross": ["prompt"], "global": ["tempo"]}}


SYSTEMS: dict[str, Any] = {
    "controls": controls,
    "references": references,
    "stereo": stereo,
    "int8": int8,
    "int4": int4,
    "vae": lambda place: {"codec": {"type": "oobleck", **VAE, "channels": 2, "decoder": {**VAE["encoder"], "snake": False}}},
    "chunks": lambda place: {"codec": LATER},
}


def _t5(folder: Path) -> str:
    """That of the example, of one layer of half the width."""
    shutil.copytree(t5._tiny().name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}))
    (folder / "model.safetensors").unlink()
    with unfilled():
        shapes = t5.Encoder(t5.T5Spec(model=str(folder), width=1)).build().state_dict()
    rng = torch.Generator().manual_seed(0)
    made = {key: torch.randn(x.shape, generator=rng) / x.shape[-1] ** 0.5 for key, x in shapes.items()}
    t5.save_encoder(made, folder)
    return str(folder)


def _clap(folder: Path) -> str:
    """Smaller than the one of the example, whose weights have more than 100 kB."""
    shutil.copytree(clap._tiny().name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config["audio_config"] |= {"hidden_size": 16, "patch_embeds_hidden_size": 2, "num_attention_heads": [1, 1, 1, 1]}
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 6}))
    (folder / "model.safetensors").unlink()
    with unfilled():
        shapes = clap.Encoder(clap.ClapSpec(model=str(folder), width=1)).build().state_dict()
    rng = torch.Generator().manual_seed(0)
    made = {key: clap._drawn(key, x.shape, rng) for key, x in shapes.items() if x.is_floating_point()}
    counts = {key: torch.zeros((), dtype=torch.long) for key in shapes if key.endswith("num_batches_tracked")}
    save_file(made | counts, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def _built(name: str, place: Path) -> System:
    """A system with weights under which conditions, codes and codebooks matter."""
    torch.manual_seed(9)
    system = System(SystemSpec.parse(SYSTEMS[name](place)), Card(name=name, license="MIT", summary="For tests."))
    learned = {key for key, _ in system.named_parameters()}
    for key, x in system.state_dict().items():
        if key.endswith((".embed", "null")):
            torch.nn.init.normal_(x)
        elif key.endswith(("alpha", "beta")):
            torch.nn.init.normal_(x, std=0.1)
        elif key in learned and not key.startswith("codec.") and ".codec." not in key:
            torch.nn.init.normal_(x, std=0.3 if name == "controls" else 0.5)
    system.eval().requires_grad_(False)
    return system.quantize(name) if name in format1.QUANTIZED else system


def _inside(folder: Path) -> None:
    """Makes the T5 of a saved system a part of a larger model, as one can be that is named by hand."""
    spec = json.loads((folder / "system.json").read_text())
    spec["conditioners"]["caption"]["inside"] = "text_encoder"
    (folder / "system.json").write_text(json.dumps(spec, indent=2) + "\n")
    place = folder / "conditioners" / "caption"
    config, weights = json.loads((place / "config.json").read_text()), load_file(place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "larger", "text_encoder": config}))
    save_file({f"text_encoder.{key}": x for key, x in weights.items()}, place / "model.safetensors", {"format": "pt"})


def make_systems() -> None:
    rng = torch.Generator().manual_seed(0)
    t = torch.arange(800) / 1600
    given = {
        "noise": 0.3 * torch.randn(1, 800, generator=rng),
        "tone": 0.5 * torch.sin(2 * torch.pi * (220 * t + 200 * t * t))[None],
        "latents": torch.randn(4, 25, generator=rng),
        "codes": torch.randint(16, (2, 20), generator=rng),
    }
    save_file(given, "inputs.safetensors")
    made: dict[str, Any] = {"machine": format1.machine(), "weights": {}}
    for name in SYSTEMS:
        folder, place = Path(name), Path("temporary")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        system = _built(name, place)
        system.save(folder)
        if name == "controls":
            _inside(folder)
        shutil.rmtree(place, ignore_errors=True)
        system = System.load(folder)
        found: dict[str, Tensor] = format1.answers(system, name)
        save_file(found, f"{name}.safetensors")
        made["weights"][name] = format1.digest(system.state_dict().values())
        print(name, {key: (tuple(x.shape), round(float(x.float().std()), 3)) for key, x in found.items() if x.ndim > 1})
    Path("made.json").write_text(json.dumps(made, indent=2) + "\n")


def make_runs() -> None:
    """Clips, a codec trained on them, the store of their codes, a generator trained on it, both runs also half way."""
    for name in ("clips", "store", "codec_run", "codec_done", "generator_run", "generator_done"):
        shutil.rmtree(name, ignore_errors=True)
    Path("clips").mkdir()
    rng = torch.Generator().manual_seed(1)
    for i, (key, tempo) in enumerate([("C major", 90), ("A minor", 120), ("C major", 60), ("A minor", 150)]):
        t = torch.arange(1280) / 1600
        wave = 0.4 * torch.sin(2 * torch.pi * 110 * (i + 1) * t) + 0.05 * torch.randn(1280, generator=rng)
        soundfile.write(f"clips/{i}.wav", wave.numpy(), 1600, subtype="PCM_16")
        notes = [[0.0, 0.4, 60 + i], [0.4, 0.8, 64 + i]]
        said = {"prompt": f"sine number {i}", "key": key, "tempo": tempo, "melody": notes}
        Path(f"clips/{i}.json").write_text(json.dumps(said) + "\n")
    _run("codec", "clips", 5)
    system = System.load("codec_done/final")
    encode(manifest_of("clips")[0], system.codec, "store")  # as `cadenza encode`
    write_codes("codes.safetensors", system.codec.encode(read("clips/0.wav")), system.spec.codec)
    _run("generator", "store", 3)


def _run(name: str, data: str, step: int) -> None:
    """A whole run as NAME_done (its log and the system it ends with), and as NAME_run what it was at a step."""
    torch.manual_seed(0)
    outcome = Trainer(f"{name}.yaml", data, out=f"{name}_done", cpu=True).train()
    assert outcome.reason == "finished"
    done, run, checkpoint = Path(f"{name}_done"), Path(f"{name}_run"), Path("checkpoints") / f"step-{step:08d}"
    shutil.copytree(done / checkpoint, run / checkpoint)
    lines = (done / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    for other in ("checkpoints", "best", "samples"):
        shutil.rmtree(done / other, ignore_errors=True)


def make_starter() -> None:
    """The likeliest codes of the bundled model, which are the same wherever no two are equally likely, and their estimates."""
    system = load("starter", device="cpu", dtype="float32")
    made = {str(i): format1.starter_codes(system, fields) for i, fields in enumerate(format1.starter_requests())}
    found = format1.estimated(system, made["1"])
    save_file(made | {f"estimate.{name}": x.contiguous() for name, x in found.items()}, "starter.safetensors")
    print({name: x.unique().numel() for name, x in made.items()}, found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps = {"systems": make_systems, "runs": make_runs, "starter": make_starter}
    for step in sys.argv[1:] or steps:
        steps[step]()
    for path in Path().rglob("*.json"):  # all of these are read as JSON, to which a line's end is nothing
        if not (text := path.read_text()).endswith("\n"):
            path.write_text(text + "\n")
