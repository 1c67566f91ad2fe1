"""The conditioners of AudioCraft's language models: a T5 that its config names, a melody or a style, and their fusion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.importers import chroma, style
from cadenza.importers.audiocraft_fuser import convert_fuser
from cadenza.importers.chroma import MELODY
from cadenza.importers.layout import compare
from cadenza.importers.package import AudiocraftPackage
from cadenza.importers.section import ConfigReader
from cadenza.importers.style import STYLE
from cadenza.importers.weights import strip_prefix, to_float32_copy
from cadenza.system.spec import SystemSpec

PROMPT = "prompt"  # how a text is called here; there it is 'description'
_HUB = ("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b")  # these are in the hub under google-t5/
_MISSING = {
    "clap": "the CLAP conditioner",
    "lut": "the look-up table of words",
    "chords_emb": "the chord conditioner",
    "drum_latents": "the drum conditioner",
    "melody": "the melody conditioner (salience matrix)",
}


def convert_conditioners(
    held: AudiocraftPackage, whole: ConfigReader, width: int, *, seconds: float
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The conditioners and the fusion of a package trained on segments of `seconds`, and the scale of positions in `cross`."""
    parts = whole.subsection("conditioners")
    parts.subsection("args", {}).ignore(["merge_text_conditions_p", "drop_desc_p"])
    specs = {}
    for name in parts.unread_keys():
        section = parts.subsection(name)
        kind = section.get("model", str)
        if kind == "t5":
            specs[name] = _t5(held, name, section, width)
        elif kind == "chroma_stem":
            block = section.subsection(kind)
            section.reject_unread()
            specs[name] = chroma.chroma_spec_from_audiocraft(block, seconds=seconds, width=width)
        elif kind == "style":
            block = section.subsection(kind)
            section.reject_unread()
            heard = held.weights.get(f"condition_provider.conditioners.{name}.embed.weight")
            dim = 1 if heard is None else heard.shape[-1]
            specs[name] = style.style_spec_from_audiocraft(block, folder=held.path.parent, dim=dim, width=width)
        else:
            needs = _MISSING.get(kind, f"a conditioner of the type '{kind}'")
            parts.unsupported(
                name, f"needs {needs}, '{kind}', which this release does not have yet; load a model that only reads text"
            )
    specs = dict(sorted(specs.items(), key=lambda item: item[1]["type"] != "t5"))  # there too texts come first
    fuser = whole.subsection("fuser")
    for slot in ("sum", "input_interpolate"):
        if names := [name for name in fuser.data.get(slot) or [] if specs.get(name, {}).get("type") == "t5"]:
            fuser.unsupported(
                slot, f"adds the text '{names[0]}' to the codes, which has not their length; use cross or prepend"
            )
    names = {name: _ours(name, specs) for name in specs}
    fusion, positions = convert_fuser(fuser, names | {name: name for name in parts.data if name not in (*names, "args")})
    return {names[name]: spec for name, spec in specs.items()}, fusion, positions


def convert_conditioner_weights(
    state: dict[str, Tensor], spec: SystemSpec, wanted: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Takes the conditioners' weights out of a package's, and gives them by our names."""
    ours: dict[str, Tensor] = {}
    for name, conditioner in spec.conditioners.items():
        stem = _stem(name, conditioner, state)
        held = {key.removeprefix(stem): state.pop(key) for key in list(state) if key.startswith(stem)}
        own = strip_prefix(wanted, f"conditioners.{name}.")
        kind = conditioner.type  # type: ignore[attr-defined]
        if kind == "style":
            found = style.convert_style_weights(held, source=source)
            compare(found, {key: x.shape for key, x in own.items()}, source=f"{source}, {stem} by our names")
        else:
            held = chroma.drop_stft_window(held, conditioner, source=source) if kind == "chroma" else _one_table(held)
            names = {_theirs(key): key for key in own}
            compare(held, {there: own[key].shape for there, key in names.items()}, source=source)
            found = {names[there]: x for there, x in held.items()}
        ours |= {f"conditioners.{name}.{key}": x for key, x in to_float32_copy(found).items()}
    return ours


def _theirs(name: str) -> str:
    """What a weight of a T5 or of a melody is called in a package."""
    known = {
        "encoder.embed_tokens.weight": "t5.shared.weight",
        "out.weight": "output_proj.weight",
        "out.bias": "output_proj.bias",
    }
    return known.get(name, f"t5.{name}")


def _one_table(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a T5 that has its embedding under one name."""
    return {key: x for key, x in held.items() if key != "t5.encoder.embed_tokens.weight" or "t5.shared.weight" not in held}


def _t5(held: AudiocraftPackage, name: str, section: ConfigReader, width: int) -> dict[str, Any]:
    t5 = section.subsection("t5")
    section.reject_unread()
    model = t5.get("name", str)
    t5.ignore(["device", "autocast_dtype", "cache_dir"])
    projection = held.weights.get(f"condition_provider.conditioners.{name}.output_proj.weight")
    if projection is None or projection.ndim != 2:
        raise CheckpointError(
            f"{held.path}: has no projection of its text (condition_provider.conditioners.{name}.output_proj.weight); "
            "it is cut short or of another model: copy it again"
        )
    spec = {
        "type": "t5",
        "model": _named(model, held.path.parent),
        "dim": projection.shape[1],
        "output_dim": width,
        "null_embedding": "zeros",
        "train": t5.get("finetune", bool, False),
        "normalize_text": t5.get("normalize_text", bool, False),
        "word_dropout": t5.get("word_dropout", (float, int), 0.0),
    }
    t5.reject_unread()
    return spec


def _named(model: str, folder: Path) -> str:
    """A T5 beside the model or at its path if there is one, else its name in the hub."""
    for place in (folder / model, folder / model.rpartition("/")[2]):
        if (place / "config.json").exists():
            return str(place)
    return f"google-t5/{model}" if model in _HUB else model


def _ours(name: str, specs: Mapping[str, Any]) -> str:
    """What a conditioner is called here; another that has that name already keeps it."""
    wave = {"chroma": MELODY, "style": STYLE}.get(specs[name]["type"], name)
    ours = {"description": PROMPT, "self_wav": wave}.get(name, name)
    return name if ours in specs else ours


def _stem(name: str, conditioner: Any, state: Mapping[str, Tensor]) -> str:
    """How the weights of a conditioner of ours begin in a package."""
    theirs = {"t5": "description"}.get(conditioner.type, "self_wav")
    own, other = (f"condition_provider.conditioners.{there}." for there in (name, theirs))
    return own if any(key.startswith(own) for key in state) else other
