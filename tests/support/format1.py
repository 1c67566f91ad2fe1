"""What is on disk in format 1, release 0.1: where it lies, what it is asked, and how answers are compared.

The fields of requests and the methods of a system are called here alone, so that a change of names changes this file.
"""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza import Audio, Codes, System
from cadenza.evaluation.estimators import load_estimators

PLACE = Path(__file__).parents[1] / "golden" / "format1"
REQUEST = {  # the field of a request in format 1 -> the field now
    "two_step": "two_step_cfg",
    "keep_prompt": "include_prompt",
    "emphasis": "id_scales",
    "may_end": "allow_eos",
}
CODECS = ("vae", "chunks")  # systems without a generator
QUANTIZED = ("int8", "int4")
GENERATORS = ("controls", "references", "stereo", *QUANTIZED)
GREEDY = {"temperature": 0}


def inputs() -> dict[str, Tensor]:
    """Sounds at 1600 Hz [c t], codes [k f] and latents [d f] that requests and codecs are given."""
    return load_file(PLACE / "inputs.safetensors")


def sound(name: str) -> Audio:
    return Audio(inputs()[name][None], 1600)


def requests(name: str) -> list[dict[str, Any]]:
    """The requests that a system of GENERATORS is asked; `items` is the first argument, the rest are fields."""
    given = inputs()
    if name == "controls":
        full = {
            "prompt": "slow piano in A minor, 80 bpm", "caption": "Two of the drums", "words": "deep house",
            "said": "rain, far away", "lyrics": {"phonemes": "hˈaɪ wˈɜːld"}, "chords": "C Am | F C",
            "melody": [(0.0, 0.2, 60), (0.2, 0.4, 64)], "drums": {"kick": [0.0, 0.2], "hat": [0.1]}, "genre": "Drum 'n' Bass",
            "bars": 3, "loudness": 0.25, "vector": torch.arange(6.0).view(2, 3) / 6, "seconds_total": 7,
        }  # fmt: skip
        guided = {"scale": 2.0, _now("emphasis"): {"genre": 1.5}, "rescale": 0.3, "negative": "noise"}
        return [
            {"items": full, "seconds": 0.4, "sampling": {**GREEDY, _now("may_end"): False}},
            {
                "items": [full, {"prompt": "drums", "chords": "F C"}, {"bpm": 130}],
                "seconds": 0.3,
                "seed": 3,
                "guidance": guided,
                _now("two_step"): True,
            },
            {
                "items": {"prompt": "drums", "tempo": [(0, 0.2, 70), (0.2, 0.4, 140)], "caption": "songs of the house"},
                "seconds": 0.4,
                "seed": 4,
            },
        ]
    if name == "references":
        full = {
            "heard": {"text": "drums", "audio": Audio(given["noise"][None], 1600)}, "style": Audio(given["tone"][None], 1600),
            "hum": Audio(given["tone"][None], 1600), "beat": Audio(given["noise"][None], 1600),
            "like": Audio(given["noise"][None], 1600), "frames": given["latents"], "tokens": given["codes"],
            "stems": {"bass": Audio(given["tone"][None], 1600)}, "parts": {"drums": given["latents"]},
        }  # fmt: skip
        start = {"continue_from": Audio(given["noise"][None, :, :160], 1600), _now("keep_prompt"): False}
        return [
            {"items": full, "seconds": 0.4, "sampling": GREEDY},
            {"items": [full, {"hum": Audio(given["noise"][None], 1600)}], "seconds": 0.3, "seed": 3, **start},
        ]
    if name == "stereo":
        return [{"items": {"tempo": 90}, "seconds": 0.4, "sampling": GREEDY}, {"items": None, "seconds": 0.3, "seed": 2}]
    item = {"prompt": "slow piano in A minor", "tempo": 80} | ({"caption": "drums"} if name == "int8" else {})
    return [{"items": item, "seconds": 0.4, "sampling": GREEDY}, {"items": [item, {}], "seconds": 0.3, "seed": 5}]


def answers(system: System, name: str) -> dict[str, Tensor]:
    """What a system generates, and what its codec makes of a sound and of the codes of it."""
    found: dict[str, Tensor] = {}
    for i, fields in enumerate(requests(name) if system.generator is not None else []):
        rest = {key: value for key, value in fields.items() if key != "items"}
        codes = system.generate_frames(fields["items"], **rest)
        audio = system.generate(fields["items"], **rest)
        found |= {f"{i}.codes": codes.ids.short(), f"{i}.code_lengths": codes.lengths}
        found |= {f"{i}.wave": audio.wave, f"{i}.wave_lengths": audio.lengths}
    heard = sound("noise").resample(system.spec.codec.sample_rate).to_channels(system.spec.codec.channels)
    with torch.inference_mode():
        frames = system.codec.encode(heard)
        found["encoded"] = frames.ids.short() if hasattr(frames, "ids") else frames.z
        found["decoded"] = system.codec.decode(frames).wave
    return {key: x.contiguous() for key, x in found.items()}


def starter_requests() -> list[dict[str, Any]]:
    """Requests to the bundled model: a text, controls, notes, a tempo that changes, a negative text."""
    notes = [(0.0, 0.5, 60), (0.5, 1.0, 64), (1.0, 1.5, 67), (1.5, 2.0, 72)]
    return [
        {"items": {"prompt": "slow piano in A minor, calm"}},
        {"items": {"prompt": "acoustic guitar and strings", "tempo": 120, "key": "C major", "chords": "C Am | F G"}},
        {"items": {"prompt": "flute", "melody": notes}},
        {"items": {"prompt": "drums and bass", "tempo": [(0, 1.0, 80), (1.0, 2.0, 140)]}},
        {"items": {"prompt": "electric piano"}, "guidance": {"scale": 4.0, "negative": "drums"}},
    ]


def starter_codes(system: System, fields: Mapping[str, Any]) -> Tensor:
    """The likeliest codes of two seconds [k f]."""
    rest = {key: value for key, value in fields.items() if key != "items"}
    return system.generate_frames(fields["items"], seconds=2.0, sampling=GREEDY, **rest).ids[0].short()


def estimated(system: System, codes: Tensor) -> dict[str, Tensor]:
    """What the bundled estimators find in the sound of some codes [k f]."""
    with torch.inference_mode():
        audio = system.codec.decode(Codes(codes[None].long(), torch.tensor([codes.shape[-1]])))
    found = load_estimators()(audio)[0]
    single = {"tempo": found.tempo, "key": found.key, "lead": found.lead, "seconds": found.seconds}
    rows = {name: getattr(found, name) for name in ("families", "chords", "melody", "chroma", "beats", "onsets")}
    return {name: torch.tensor(value) for name, value in single.items()} | rows


def _now(field: str) -> str:
    return REQUEST[field]


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of values, whatever they are called and in whatever order they come."""
    each = sorted(
        hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode() + x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        .hexdigest()
        for x in tensors
    )  # fmt: skip
    return hashlib.sha256("".join(each).encode()).hexdigest()


def machine() -> str:
    """The kind of machine on which floating point gives the same bits: torch, its instructions, the processor."""
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}, {name}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, bits: bool, atol: float = 1e-5) -> None:
    """Asserts that codes and lengths are equal; so are sounds bit for bit where `bits`, elsewhere to a tolerance."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if bits or not x.is_floating_point():
            assert torch.equal(found[name], x), name
        else:
            torch.testing.assert_close(found[name], x, atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
