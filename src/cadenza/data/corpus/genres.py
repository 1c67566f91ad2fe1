"""The genres: tempo, metre, harmony, players and patterns that make each sound like itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Genre:
    """What a genre allows, each choice with its weight."""

    name: str
    weight: float
    tempo: tuple[int, int]
    metres: Weights
    harmony: str
    ensembles: Weights
    solos: Weights
    leads: Weights
    chords: Weights
    basses: Weights
    accompaniments: Weights
    bass_styles: Weights
    pads: Weights = field(default_factory=dict)
    drums: str | None = None
    kit: str = "standard kit"
    swing: float = 0.5
    swing_unit: float = 1.0
    density: Weights = field(default_factory=lambda: {"sparse": 1, "medium": 2, "busy": 1})
    syncopation: float = 0.0
    room: tuple[float, float] = (0.5, 1.0)


GENRES: tuple[Genre, ...] = (
    Genre(
        "ballad", 1.2, (52, 84), {"4/4": 4, "6/8": 1}, "pop",
        {"solo": 5, "duo": 3, "trio": 2, "band": 2},
        {"piano": 7, "nylon guitar": 2, "steel guitar": 2, "electric piano": 2},
        {"violin": 2, "cello": 2, "piano": 2, "oboe": 1, "alto sax": 1.5, "flute": 1, "french horn": 1},
        {"piano": 5, "electric piano": 2, "nylon guitar": 2, "steel guitar": 1},
        {"electric bass": 2, "double bass": 1},
        {"arpeggio": 4, "block": 2, "broken": 2},
        {"long": 3, "root-fifth": 2},
        pads={"string ensemble": 3, "warm pad": 1}, drums="ballad", kit="standard kit",
        density={"sparse": 2, "medium": 2}, room=(0.9, 1.5),
    ),
    Genre(
        "waltz", 1.0, (84, 176), {"3/4": 1}, "classical",
        {"solo": 3, "duo": 3, "trio": 3, "band": 1},
        {"piano": 6, "accordion": 3, "music box": 1, "nylon guitar": 2},
        {"violin": 3, "clarinet": 2, "flute": 2, "accordion": 2, "oboe": 1, "piano": 1},
        {"piano": 4, "accordion": 2, "string ensemble": 1, "nylon guitar": 2, "pizzicato strings": 2},
        {"double bass": 1},
        {"oom-pah": 1},
        {"oom": 1},
        drums="waltz", kit="brush kit", density={"sparse": 1, "medium": 3, "busy": 1}, room=(0.7, 1.3),
    ),
    Genre(
        "folk", 1.1, (80, 144), {"4/4": 3, "3/4": 1, "6/8": 1.5}, "folk",
        {"solo": 4, "duo": 4, "trio": 3, "band": 1},
        {"steel guitar": 5, "nylon guitar": 3, "accordion": 2, "harp": 1.5},
        {"violin": 3, "flute": 2, "recorder": 2, "accordion": 2, "clarinet": 1, "pan flute": 1},
        {"steel guitar": 5, "nylon guitar": 3, "harp": 1, "accordion": 1},
        {"double bass": 2, "electric bass": 1},
        {"strum": 4, "broken": 2, "arpeggio": 2},
        {"root-fifth": 3, "long": 1},
        drums="folk", density={"medium": 3, "busy": 1}, room=(0.4, 0.8),
    ),
    Genre(
        "rock", 1.0, (100, 176), {"4/4": 1}, "rock",
        {"trio": 3, "band": 5, "solo": 1, "duo": 1},
        {"steel guitar": 2, "clean electric guitar": 3, "overdriven guitar": 2},
        {"overdriven guitar": 4, "distorted guitar": 2, "hammond organ": 1, "saw lead": 0.7, "clean electric guitar": 1},
        {"distorted guitar": 2, "overdriven guitar": 2, "clean electric guitar": 2, "hammond organ": 1, "bright piano": 1},
        {"picked bass": 3, "electric bass": 2},
        {"eighths": 3, "strum": 3},
        {"eighths": 4, "root-fifth": 1},
        pads={"hammond organ": 1}, drums="rock", kit="power kit", density={"medium": 2, "busy": 2},
        syncopation=0.4, room=(0.4, 0.8),
    ),
    Genre(
        "funk", 0.9, (88, 116), {"4/4": 1}, "funk",
        {"trio": 3, "band": 5, "duo": 1, "solo": 0.5},
        {"clean electric guitar": 2, "electric piano": 3, "hammond organ": 1},
        {"brass section": 2, "alto sax": 2, "trumpet": 2, "hammond organ": 1, "electric piano": 1, "square lead": 1,
            "tenor sax": 1},
        {"clean electric guitar": 4, "electric piano": 3, "hammond organ": 1},
        {"electric bass": 3, "picked bass": 1, "synth bass": 1},
        {"sixteenths": 3, "offbeat": 2},
        {"funk": 1},
        drums="funk", swing=0.54, swing_unit=0.5, density={"medium": 2, "busy": 2}, syncopation=0.7, room=(0.3, 0.6),
    ),
    Genre(
        "jazz", 1.1, (92, 180), {"4/4": 4, "3/4": 1}, "jazz",
        {"solo": 2, "duo": 3, "trio": 4, "band": 3},
        {"piano": 5, "jazz guitar": 3, "vibraphone": 1.5},
        {"tenor sax": 3, "alto sax": 2, "trumpet": 3, "vibraphone": 2, "jazz guitar": 2, "clarinet": 1.5,
            "trombone": 1.5, "soprano sax": 1},
        {"piano": 5, "jazz guitar": 3, "vibraphone": 1},
        {"double bass": 5, "electric bass": 1},
        {"comp": 1},
        {"walking": 1},
        drums="jazz", kit="brush kit", swing=0.64, density={"medium": 2, "busy": 2}, syncopation=0.5, room=(0.4, 0.8),
    ),
    Genre(
        "blues", 0.9, (66, 128), {"4/4": 3, "6/8": 1}, "blues",
        {"solo": 2, "duo": 2, "trio": 3, "band": 3},
        {"piano": 2, "steel guitar": 3, "jazz guitar": 1.5, "hammond organ": 1},
        {"overdriven guitar": 3, "jazz guitar": 1.5, "tenor sax": 2, "hammond organ": 1.5, "piano": 1, "trumpet": 1},
        {"piano": 3, "hammond organ": 2, "clean electric guitar": 2, "steel guitar": 1},
        {"electric bass": 2, "double bass": 2},
        {"shuffle": 2, "comp": 1},
        {"walking": 2, "shuffle": 2},
        drums="shuffle", swing=0.66, density={"medium": 3, "busy": 1}, syncopation=0.4, room=(0.4, 0.9),
    ),
    Genre(
        "ambient", 0.9, (52, 92), {"4/4": 3, "3/4": 1, "6/8": 1}, "modal",
        {"solo": 2, "duo": 4, "trio": 3},
        {"electric piano": 2, "harp": 2, "vibraphone": 1, "piano": 2, "poly synth": 1.5},
        {"flute": 1.5, "pan flute": 1.5, "celesta": 1.5, "vibraphone": 2, "piano": 2, "square lead": 0.5, "french horn": 1},
        {"electric piano": 2, "harp": 2, "vibraphone": 1, "poly synth": 2, "nylon guitar": 1},
        {"synth bass": 2, "electric bass": 1},
        {"arpeggio": 4, "broken": 2},
        {"long": 1},
        pads={"warm pad": 3, "string ensemble": 2, "poly synth": 1}, density={"sparse": 3, "medium": 1}, room=(1.4, 2.2),
    ),
    Genre(
        "march", 0.8, (96, 132), {"4/4": 3, "6/8": 1}, "classical",
        {"solo": 1, "trio": 2, "band": 4},
        {"piano": 2, "church organ": 1, "accordion": 1},
        {"trumpet": 4, "flute": 2, "clarinet": 2, "brass section": 1.5, "french horn": 1},
        {"brass section": 3, "trombone": 1, "french horn": 2, "piano": 1},
        {"bassoon": 2, "double bass": 2},
        {"oom-pah": 1},
        {"oom": 1},
        drums="march", density={"medium": 3, "busy": 1}, room=(0.6, 1.2),
    ),
    Genre(
        "hymn", 0.9, (58, 100), {"4/4": 3, "3/4": 1.5}, "hymn",
        {"solo": 4, "duo": 2, "trio": 2},
        {"church organ": 4, "piano": 2, "string ensemble": 1, "hammond organ": 1},
        {"trumpet": 2, "oboe": 1, "french horn": 1, "violin": 1, "church organ": 1, "clarinet": 1},
        {"church organ": 4, "string ensemble": 2, "piano": 1, "brass section": 1},
        {"cello": 2, "bassoon": 1, "double bass": 1},
        {"beats": 1},
        {"beats": 1},
        density={"sparse": 1, "medium": 3}, room=(1.2, 2.0),
    ),
    Genre(
        "classical", 1.3, (66, 168), {"4/4": 4, "3/4": 2, "6/8": 1.5}, "classical",
        {"solo": 5, "duo": 4, "trio": 3},
        {"piano": 7, "nylon guitar": 2, "harp": 2, "church organ": 1},
        {"violin": 3, "flute": 2, "oboe": 2, "clarinet": 2, "cello": 2, "viola": 1, "bassoon": 1, "french horn": 1},
        {"piano": 4, "string ensemble": 2, "harp": 2, "pizzicato strings": 1.5},
        {"cello": 2, "double bass": 1, "bassoon": 1},
        {"alberti": 4, "arpeggio": 2, "broken": 2, "block": 1},
        {"long": 1, "root-fifth": 1},
        density={"medium": 2, "busy": 2, "sparse": 0.5}, room=(0.8, 1.5),
    ),
    Genre(
        "electronic", 1.0, (104, 160), {"4/4": 1}, "pop",
        {"trio": 2, "band": 5, "duo": 1.5},
        {"poly synth": 1},
        {"saw lead": 3, "square lead": 3, "electric piano": 0.7, "bright piano": 1},
        {"poly synth": 3, "saw lead": 1, "bright piano": 1.5, "square lead": 1},
        {"synth bass": 1},
        {"offbeat": 2, "sixteenth arpeggio": 3, "eighths": 1},
        {"offbeat": 2, "eighths": 2},
        pads={"warm pad": 2, "poly synth": 1}, drums="electronic", kit="808 kit",
        density={"medium": 2, "busy": 2}, syncopation=0.5, room=(0.4, 1.0),
    ),
    Genre(
        "lullaby", 0.9, (56, 92), {"3/4": 2, "6/8": 2, "4/4": 2}, "folk",
        {"solo": 5, "duo": 4, "trio": 1},
        {"music box": 3, "celesta": 2, "piano": 3, "nylon guitar": 2, "harp": 2},
        {"flute": 2, "music box": 2, "celesta": 1.5, "clarinet": 1, "recorder": 1, "glockenspiel": 1, "cello": 1},
        {"piano": 2, "harp": 3, "nylon guitar": 3, "celesta": 1, "vibraphone": 1},
        {"cello": 1, "double bass": 1},
        {"arpeggio": 3, "broken": 3},
        {"long": 1},
        density={"sparse": 2, "medium": 2}, room=(0.8, 1.4),
    ),
    Genre(
        "lo-fi", 0.9, (66, 92), {"4/4": 1}, "jazzpop",
        {"trio": 3, "band": 4, "duo": 2, "solo": 1},
        {"electric piano": 3, "jazz guitar": 2, "piano": 1.5},
        {"vibraphone": 2, "electric piano": 2, "flute": 1.5, "jazz guitar": 2, "piano": 2, "alto sax": 1},
        {"electric piano": 4, "piano": 2, "jazz guitar": 1.5},
        {"electric bass": 3, "double bass": 1, "synth bass": 1},
        {"comp": 1, "block": 2},
        {"syncopated": 2, "long": 1},
        pads={"warm pad": 1}, drums="lofi", kit="standard kit", swing=0.58, swing_unit=0.5,
        density={"sparse": 2, "medium": 2}, syncopation=0.4, room=(0.4, 0.9),
    ),
    Genre(
        "etude", 0.8, (60, 176), {"4/4": 3, "3/4": 2, "6/8": 1}, "classical",
        {"alone": 1},
        {"piano": 1},
        {
            "violin": 2, "flute": 2, "cello": 1.5, "clarinet": 1.5, "trumpet": 1.5, "recorder": 1, "oboe": 1,
            "alto sax": 1.5, "marimba": 2, "xylophone": 1, "vibraphone": 1, "nylon guitar": 1, "piano": 2, "trombone": 1,
            "glockenspiel": 1, "tenor sax": 1, "viola": 1, "bassoon": 1, "french horn": 1,
        },
        {"piano": 1}, {"double bass": 1}, {"block": 1}, {"long": 1},
        density={"medium": 3, "busy": 2}, room=(0.6, 1.3),
    ),
)  # fmt: skip
