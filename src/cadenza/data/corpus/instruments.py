"""The General MIDI programs in use, with their families, registers and loudness corrections."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = (
    "piano",
    "mallets",
    "organ",
    "guitar",
    "bass",
    "strings",
    "brass",
    "reed",
    "flute",
    "synth",
    "drums",
)


@dataclass(frozen=True)
class Instrument:
    """One sound of the soundfont: its program, family, melody range and level trim in dB."""

    name: str
    program: int
    family: str
    low: int
    high: int
    trim: float = 0.0
    decays: bool = True


def _table(*rows: Instrument) -> dict[str, Instrument]:
    return {row.name: row for row in rows}


INSTRUMENTS = _table(
    Instrument("piano", 0, "piano", 60, 86, 3.0),
    Instrument("bright piano", 1, "piano", 60, 86, 3.0),
    Instrument("electric piano", 4, "piano", 58, 82, -2.5),
    Instrument("celesta", 8, "mallets", 67, 91),
    Instrument("glockenspiel", 9, "mallets", 72, 93, 1.0),
    Instrument("music box", 10, "mallets", 67, 91),
    Instrument("vibraphone", 11, "mallets", 58, 82, 2.5),
    Instrument("marimba", 12, "mallets", 57, 84),
    Instrument("xylophone", 13, "mallets", 67, 91, 4.0),
    Instrument("hammond organ", 16, "organ", 57, 81, decays=False),
    Instrument("church organ", 19, "organ", 57, 81, decays=False),
    Instrument("accordion", 21, "organ", 59, 82, decays=False),
    Instrument("nylon guitar", 24, "guitar", 55, 79),
    Instrument("steel guitar", 25, "guitar", 55, 79),
    Instrument("jazz guitar", 26, "guitar", 55, 77, -1.5),
    Instrument("clean electric guitar", 27, "guitar", 55, 79),
    Instrument("overdriven guitar", 29, "guitar", 55, 79, -2.5, decays=False),
    Instrument("distorted guitar", 30, "guitar", 55, 79, -4.0, decays=False),
    Instrument("double bass", 32, "bass", 28, 50),
    Instrument("electric bass", 33, "bass", 28, 50),
    Instrument("picked bass", 34, "bass", 28, 50),
    Instrument("synth bass", 38, "bass", 28, 50),
    Instrument("violin", 40, "strings", 62, 88, decays=False),
    Instrument("viola", 41, "strings", 55, 79, decays=False),
    Instrument("cello", 42, "strings", 45, 69, decays=False),
    Instrument("pizzicato strings", 45, "strings", 55, 81),
    Instrument("harp", 46, "strings", 58, 86, 2.0),
    Instrument("string ensemble", 48, "strings", 57, 84, decays=False),
    Instrument("trumpet", 56, "brass", 58, 81, decays=False),
    Instrument("trombone", 57, "brass", 45, 67, -3.5, decays=False),
    Instrument("french horn", 60, "brass", 50, 72, -2.5, decays=False),
    Instrument("brass section", 61, "brass", 55, 77, decays=False),
    Instrument("soprano sax", 64, "reed", 60, 82, -2.0, decays=False),
    Instrument("alto sax", 65, "reed", 55, 78, -2.5, decays=False),
    Instrument("tenor sax", 66, "reed", 50, 72, -1.5, decays=False),
    Instrument("oboe", 68, "reed", 60, 84, decays=False),
    Instrument("bassoon", 70, "reed", 43, 67, decays=False),
    Instrument("clarinet", 71, "reed", 55, 82, -2.5, decays=False),
    Instrument("flute", 73, "flute", 64, 91, -2.0, decays=False),
    Instrument("recorder", 74, "flute", 67, 89, -3.0, decays=False),
    Instrument("pan flute", 75, "flute", 62, 86, -2.0, decays=False),
    Instrument("square lead", 80, "synth", 60, 84, decays=False),
    Instrument("saw lead", 81, "synth", 60, 84, decays=False),
    Instrument("warm pad", 89, "synth", 57, 81, 1.0, decays=False),
    Instrument("poly synth", 90, "synth", 57, 81, decays=False),
)

DRUM_KITS = {
    "standard kit": 0,
    "power kit": 16,
    "808 kit": 25,
    "brush kit": 40,
}


def instrument(name: str) -> Instrument:
    """The instrument or drum kit of a name in the tables."""
    if name in DRUM_KITS:
        return Instrument(name, DRUM_KITS[name], "drums", 35, 81)
    return INSTRUMENTS[name]
