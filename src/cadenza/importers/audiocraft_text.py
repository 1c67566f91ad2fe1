"""The text conditioner of AudioCraft's language models: a T5 that its config names, and its projection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.importers.layout import compare
from cadenza.importers.package import Package
from cadenza.importers.section import Section
from cadenza.importers.weights import in_memory, part
from cadenza.system.spec import SystemSpec

PROMPT = "prompt"  # how a text is called here; there it is 'description'
_HUB = ("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b")  # these are in the hub under google-t5/
_MISSING = {
    "chroma_stem": "the melody conditioner (chroma of a recording)",
    "clap": "the CLAP conditioner",
    "style": "the style conditioner",
    "lut": "the look-up table of words",
    "chords_emb": "the chord conditioner",
    "drum_latents": "the drum conditioner",
    "melody": "the melody conditioner (salience matrix)",
}


def text_of(held: Package, whole: Section, width: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The conditioners and the fusion of a package."""
    parts = whole.within("conditioners")
    parts.within("args", {}).without_effect(["merge_text_conditions_p", "drop_desc_p"])
    specs = {}
    for name in parts.left():
        section = parts.within(name)
        kind = section.take("model", str)
        if kind == "t5":
            specs[name] = _t5(held, name, section, width)
        else:
            needs = _MISSING.get(kind, f"a conditioner of the type '{kind}'")
            parts.refuse(
                name, f"needs {needs}, '{kind}', which this release does not have yet; load a model that only reads text"
            )
    fuser = whole.within("fuser")
    fuser.expect("cross_attention_pos_emb", False, None)
    fuser.without_effect(["cross_attention_pos_emb_scale"])  # of those positions
    fusion = {}
    for slot in ("cross", "prepend", "ignore"):
        named = fuser.take(slot, list, [])
        if lost := [name for name in named if name not in parts.data]:
            fuser.refuse(slot, f"names '{lost[0]}', which is no conditioner; there are: {', '.join(parts.data) or 'none'}")
        fusion[slot] = [_ours(name, specs) for name in specs if name in named]  # there too in the order of the conditioners
    for slot in ("sum", "input_interpolate"):
        fuser.expect(slot, [], None, why="adds a text to the codes, which has not their length;")
    fuser.all_seen()
    fusion["prepend"].reverse()  # each is put before those that are there already
    return {_ours(name, specs): spec for name, spec in specs.items()}, fusion


def text_weights(state: dict[str, Tensor], spec: SystemSpec, wanted: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Takes the conditioners' weights out of a package's, and gives them by our names."""
    ours: dict[str, Tensor] = {}
    for name, conditioner in spec.conditioners.items():
        there = "description" if name == PROMPT else name
        stem = f"condition_provider.conditioners.{there}."
        held = {key.removeprefix(stem): state.pop(key) for key in list(state) if key.startswith(stem)}
        names = {f"output_proj.{end}": f"out.{end}" for end in ("weight", "bias")}
        if conditioner.train:  # type: ignore[attr-defined]  # a t5
            if "t5.shared.weight" in held:
                held.pop("t5.encoder.embed_tokens.weight", None)
            names["t5.shared.weight"] = "encoder.embed_tokens.weight"
            names |= {key: key.removeprefix("t5.") for key in held if key.startswith("t5.encoder.")}
        own = part(wanted, f"conditioners.{name}.")
        unknown = {there: (0,) for there, here in names.items() if here not in own}
        compare(held, {there: own[here].shape for there, here in names.items() if here in own} | unknown, source=source)
        ours |= {f"conditioners.{name}.{names[key]}": x for key, x in in_memory(held).items()}
    return ours


def _t5(held: Package, name: str, section: Section, width: int) -> dict[str, Any]:
    t5 = section.within("t5")
    section.all_seen()
    model = t5.take("name", str)
    t5.without_effect(["device", "autocast_dtype", "cache_dir"])
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
        "width": width,
        "absent": "zeros",
        "train": t5.take("finetune", bool, False),
        "normalize_text": t5.take("normalize_text", bool, False),
        "word_dropout": t5.take("word_dropout", (float, int), 0.0),
    }
    t5.all_seen()
    return spec


def _named(model: str, folder: Path) -> str:
    """A T5 beside the model or at its path if there is one, else its name in the hub."""
    for place in (folder / model, folder / model.rpartition("/")[2]):
        if (place / "config.json").exists():
            return str(place)
    return f"google-t5/{model}" if model in _HUB else model


def _ours(name: str, specs: Mapping[str, Any]) -> str:
    return PROMPT if name == "description" and PROMPT not in specs else name
