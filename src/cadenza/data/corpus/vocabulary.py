"""The words and templates of captions, about a tenth of the words kept for held-out corpora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Words:
    """Interchangeable phrases: those for training, and those kept for held-out captions."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def of(self, *, unseen: bool) -> tuple[str, ...]:
        """The kept phrases if unseen ones are wanted and there are any, else those for training."""
        return self.held_out if unseen and self.held_out else self.train


def _w(train: str, held_out: str = "") -> Words:
    return Words(tuple(train.split("|")), tuple(held_out.split("|")) if held_out else ())


INSTRUMENTS: dict[str, Words] = {
    "piano": _w("piano|acoustic piano|grand piano|piano|concert grand", "pianoforte"),
    "bright piano": _w("bright piano|piano|upright piano|honky bright piano"),
    "electric piano": _w("electric piano|Rhodes|Rhodes piano|e-piano|electric piano", "Fender Rhodes"),
    "celesta": _w("celesta|celeste"),
    "glockenspiel": _w("glockenspiel|bells"),
    "music box": _w("music box|musical box|clockwork music box"),
    "vibraphone": _w("vibraphone|vibes", "vibraharp"),
    "marimba": _w("marimba|wooden marimba"),
    "xylophone": _w("xylophone"),
    "hammond organ": _w("Hammond organ|organ|electric organ|drawbar organ|tonewheel organ"),
    "church organ": _w("church organ|pipe organ|organ", "cathedral organ"),
    "accordion": _w("accordion|accordion|squeezebox"),
    "nylon guitar": _w("nylon guitar|classical guitar|acoustic guitar|nylon-string guitar", "Spanish guitar"),
    "steel guitar": _w("acoustic guitar|steel-string guitar|folk guitar|western guitar"),
    "jazz guitar": _w("jazz guitar|hollow-body guitar|mellow electric guitar", "archtop guitar"),
    "clean electric guitar": _w("clean electric guitar|electric guitar|clean guitar"),
    "overdriven guitar": _w("overdriven guitar|electric guitar|crunchy guitar|gritty guitar"),
    "distorted guitar": _w("distorted guitar|heavy guitar|distortion guitar|electric guitar", "fuzzy guitar"),
    "double bass": _w("double bass|upright bass|acoustic bass|bass|contrabass"),
    "electric bass": _w("electric bass|bass guitar|bass|fingered bass"),
    "picked bass": _w("picked bass|bass guitar|bass|electric bass"),
    "synth bass": _w("synth bass|synthesizer bass|bass synth|bass", "electronic bass"),
    "violin": _w("violin|violin|fiddle|concert violin"),
    "viola": _w("viola"),
    "cello": _w("cello", "violoncello"),
    "pizzicato strings": _w("pizzicato strings|plucked strings|pizzicati"),
    "harp": _w("harp|concert harp"),
    "string ensemble": _w("strings|string ensemble|string section|string orchestra", "bowed strings"),
    "trumpet": _w("trumpet"),
    "trombone": _w("trombone"),
    "french horn": _w("French horn|horn"),
    "brass section": _w("brass section|brass|horn section|brass ensemble|brass choir"),
    "soprano sax": _w("soprano sax|soprano saxophone|sax"),
    "alto sax": _w("alto sax|alto saxophone|sax|saxophone"),
    "tenor sax": _w("tenor sax|tenor saxophone|sax|saxophone"),
    "oboe": _w("oboe"),
    "bassoon": _w("bassoon"),
    "clarinet": _w("clarinet"),
    "flute": _w("flute|concert flute", "transverse flute"),
    "recorder": _w("recorder|wooden recorder|block flute"),
    "pan flute": _w("pan flute|pan pipes", "panpipes"),
    "square lead": _w("square synth|synth lead|chiptune synth|synth|square-wave synth"),
    "saw lead": _w("saw synth|synth lead|sawtooth synth|synth", "saw-wave synth"),
    "warm pad": _w("warm pad|synth pad|soft pad|pad|ambient pad"),
    "poly synth": _w("poly synth|synthesizer|synth chords|analog synth", "polyphonic synth"),
    "standard kit": _w("drums|drum kit|drum set|acoustic drums|percussion"),
    "power kit": _w("drums|rock drums|drum kit|punchy drums", "hard-hitting drums"),
    "808 kit": _w("electronic drums|808 drums|drum machine|drums|programmed drums"),
    "brush kit": _w("brushed drums|drums|brush drums|soft drums", "drums with brushes"),
}

GENRES: dict[str, Words] = {
    "ballad": _w("ballad|pop ballad|slow song|soft pop|power ballad"),
    "waltz": _w("waltz|ballroom waltz|dance in three", "Viennese waltz"),
    "folk": _w("folk|folk song|folk tune|acoustic folk|traditional tune"),
    "rock": _w("rock|rock song|guitar rock|rock music", "rock and roll"),
    "funk": _w("funk|funky groove|funk jam|soul funk|funk number"),
    "jazz": _w("jazz|swing|jazz swing|swinging jazz|jazz standard", "bebop"),
    "blues": _w("blues|blues tune|blues song|blues music|bluesy number"),
    "ambient": _w("ambient|ambient soundscape|ambient music|atmospheric music", "chill-out music"),
    "march": _w("march|marching tune|military march|parade march|marching band music"),
    "hymn": _w("hymn|chorale|church hymn|church music", "sacred song"),
    "classical": _w("classical|classical piece|classical music|chamber music|sonatina"),
    "electronic": _w("electronic|electronic music|synth pop|dance music|electronica", "EDM"),
    "lullaby": _w("lullaby|cradle song|bedtime song|berceuse"),
    "lo-fi": _w("lo-fi|lofi hip hop|lo-fi beat|chillhop", "lo-fi study beat"),
    "etude": _w("etude|study|melody|single-line tune|exercise"),
}

MOODS: dict[str, Words] = {
    "calm": _w("calm|peaceful|serene|tranquil|quietly calm|soothing", "placid"),
    "tender": _w("tender|gentle|delicate|loving|romantic|affectionate"),
    "hopeful": _w("hopeful|uplifting|optimistic|inspiring", "encouraging"),
    "warm": _w("warm|heartfelt|cosy|sweet|mellow-hearted"),
    "happy": _w("happy|cheerful|joyful|bright|merry|sunny", "jolly"),
    "playful": _w("playful|light-hearted|whimsical|bouncy|fun|mischievous"),
    "energetic": _w("energetic|driving|lively|vigorous|powerful", "high-energy"),
    "majestic": _w("majestic|grand|triumphant|stately|proud|regal"),
    "solemn": _w("solemn|reverent|dignified|devout|serious", "ceremonial"),
    "sad": _w("sad|sorrowful|mournful|tearful|heartbroken|grieving"),
    "melancholic": _w("melancholic|melancholy|wistful|pensive|bittersweet", "forlorn"),
    "mysterious": _w("mysterious|enigmatic|eerie|haunting|uncanny"),
    "nostalgic": _w("nostalgic|reflective|longing|yearning", "reminiscent"),
    "tense": _w("tense|anxious|restless|urgent|nervous|edgy"),
    "dramatic": _w("dramatic|intense|passionate|stormy", "turbulent"),
    "dreamy": _w("dreamy|floating|ethereal|hazy|spacious|otherworldly"),
    "relaxed": _w("relaxed|laid-back|chilled|easy-going|mellow", "unwinding"),
    "groovy": _w("groovy|funky|rhythmic|danceable|catchy|toe-tapping"),
}

# Each tempo phrase with the range of beats a minute in which it is true.
TEMPI: tuple[tuple[int, int, Words], ...] = (
    (40, 60, _w("very slow|extremely slow|largo", "glacially slow")),
    (40, 85, _w("slow|slow|slow-paced|unhurried|slow tempo", "leisurely")),
    (60, 76, _w("adagio")),
    (76, 108, _w("andante|walking-pace")),
    (86, 115, _w("moderate|mid-tempo|medium-tempo|moderately paced|medium tempo", "moderato")),
    (116, 152, _w("fast|quick|up-tempo|upbeat-tempo|allegro", "brisk")),
    (153, 300, _w("very fast|fast|rapid|presto|racing", "breakneck")),
)

BPM = _w(
    "{n} bpm|{n} BPM|{n} beats per minute|tempo {n}|{n} bpm|{n}bpm|a tempo of {n} bpm",
    "{n} beats a minute|tempo of {n}",
)

SHARPS: dict[str, tuple[str, ...]] = {
    "C": ("C",),
    "C#": ("C#", "C sharp", "C-sharp", "Db", "D flat", "D-flat"),
    "D": ("D",),
    "D#": ("D#", "D sharp", "Eb", "E flat", "E-flat", "Eb"),
    "E": ("E",),
    "F": ("F",),
    "F#": ("F#", "F sharp", "F-sharp", "Gb", "G flat"),
    "G": ("G",),
    "G#": ("G#", "G sharp", "G-sharp", "Ab", "A flat", "A-flat"),
    "A": ("A",),
    "A#": ("A#", "A sharp", "Bb", "B flat", "B-flat", "Bb"),
    "B": ("B",),
}

METRES: dict[str, Words] = {
    "4/4": _w("4/4|4/4 time|four-four|common time", "four beats to the bar"),
    "3/4": _w("3/4|3/4 time|three-four|triple time|waltz time|three beats to the bar"),
    "6/8": _w("6/8|6/8 time|six-eight|compound time", "a 6/8 lilt"),
}

DYNAMICS: dict[str, Words] = {
    "soft": _w("soft|quiet|softly played|low volume|hushed|pianissimo"),
    "medium": _w("medium volume|moderately loud|mezzo-forte|balanced dynamics", "mezzo-piano to mezzo-forte"),
    "loud": _w("loud|strong|forte|played loudly|forceful|fortissimo"),
    "building": _w("building|crescendo|growing louder|getting louder", "swelling"),
    "fading": _w("fading|diminuendo|getting softer|growing quieter|decrescendo"),
}

DENSITIES: dict[str, Words] = {
    "sparse": _w("sparse|few notes|minimal|spacious texture|simple", "uncluttered"),
    "medium": _w("flowing|steady|moderately busy|even|moderately dense"),
    "busy": _w("busy|many notes|dense|full of notes|active", "note-packed"),
}

ENSEMBLES: dict[str, Words] = {
    "duo": _w("duo|duet|twosome"),
    "trio": _w("trio|small group", "three-piece group"),
    "band": _w("full band|band|ensemble|full arrangement|whole group"),
}

ACCOMPANIMENTS: dict[str, Words] = {
    "arpeggio": _w("arpeggios|arpeggiated chords|rolling arpeggios", "rippling chords"),
    "sixteenth arpeggio": _w("fast arpeggios|an arpeggiator|sequenced arpeggios|a running arpeggiator"),
    "broken": _w("broken chords|gently broken chords"),
    "alberti": _w("Alberti bass|an Alberti accompaniment|broken chords"),
    "block": _w("block chords|held chords|sustained chords", "plain chords"),
    "beats": _w("chords on every beat|block chords|chordal harmony|chords beat by beat"),
    "strum": _w("strummed chords|strumming|strummed accompaniment", "a strummed backing"),
    "eighths": _w("driving eighth notes|chugging chords|power chords|chugging eighths"),
    "sixteenths": _w("choppy chords|syncopated chops|funky sixteenth chords", "scratchy chops"),
    "offbeat": _w("offbeat chords|off-beat stabs|chords on the offbeat|upbeat stabs"),
    "comp": _w("jazzy chords|comping|syncopated chords", "loose comping"),
    "shuffle": _w("a shuffle|boogie chords|a shuffling rhythm|a boogie pattern"),
    "oom-pah": _w("oom-pah chords|an oom-pah accompaniment|bass and off-beat chords", "an oompah beat"),
}

# `{field}` is filled in; `[...]` stays only if every field in it was chosen for the caption.
TEMPLATES = Words(
    (
        "[{tempo} ]{players}[ in {key}][, {bpm}]",
        "[{tempo} ]{players}[ {genre}][ in {key}][, {bpm}][, {mood}][, {dynamics}]",
        "[{mood} ][{tempo} ]{players}[ in {key}][ at {bpm}][, {metre}][, {density}]",
        "[{mood} ]{genre}[ for {players}][ in {key}][, {bpm}][, {dynamics}]",
        "{A} [{mood} ][{tempo} ]{genre} piece[ for {players}][ in {key}][ at {bpm}][, with {accompaniment}]",
        "{A} [{tempo}, ][{mood} ]{genre} track[ featuring {players}][. Key: {key}][. {bpm}][. {metre}]",
        "{Players}[ playing {a} {mood} {genre}][ in {key}][ at {bpm}][, {dynamics}][, {tempo}]",
        "[{Mood} ]{players} music[, {tempo}][, {key}][, {bpm}][, {metre}]",
        "{genre}[, {players}][, {key}][, {bpm}][, {mood}][, {tempo}]",
        "{players}[, {key}][, {bpm}][, {tempo}][, {mood}][, {density}][, {dynamics}]",
        "[{key}, ][{bpm}, ][{tempo}, ][{mood}, ]{players}[, {genre}]",
        "This is {a} [{mood} ][{tempo} ]{genre} piece[ in {key}][ played by {players}][ at {bpm}].",
        "The music is [{tempo} and ]{mood}[, in {key}][, at {bpm}][, played on {players}].",
        "Play [me ]something {mood}[ and {tempo}][ on {players}][ in {key}][ at {bpm}]",
        "{A} {lead} melody[ over {accompaniment}][ in {key}][, {tempo}][, {bpm}][, {mood}]",
        "[{Dynamics}, ][{density}, ][{mood} ]{genre}[ in {key}][, {metre}][, {bpm}][, {tempo}][, {players}]",
        "[{tempo} ]{genre}[ with {players}][, {accompaniment}][, in {key}][, {bpm}]",
        "[{bpm} ]{genre}[ in {key}][, {tempo}][, {players}][, {mood} mood]",
        "{A} {ensemble}[ of {players}][: {mood} {genre}][ in {key}][, {bpm}][, {tempo}][, {density}]",
        "[{tempo} ]{mood} tune[ for {players}][ in {key}][ with {a} {metre} feel][ at {bpm}]",
        "{players}, {mood}[, {tempo}][, {bpm}][, key of {key}]",
        "I want {a} [{tempo} ][{mood} ]{genre} in the key of {key}[ with {players}][ at {bpm}]",
        "[{tempo} ]{genre} in {key}[ at {bpm}][, {dynamics}][, {metre}]",
        "[{mood}, ][{tempo}, ][{dynamics} ]{lead} piece[ in {key}][ at {bpm}][ accompanied by {accompaniment}]",
    ),
    (
        "{key}[, {players}][, {tempo}][, {bpm}][; {mood} {genre}]",
        "Compose {a} [{mood} ][{tempo} ]{genre}[ using {players}][, set in {key}][, running at {bpm}]",
        "Imagine {players}[ in {a} {mood} mood][, {tempo}][, {key}][, {bpm}]",
        "[{genre}: ]{players}[ | {key}][ | {bpm}][ | {tempo}][ | {mood}]",
        "Some [{tempo} ][{mood} ]{genre}, please[: {players}][, in {key}][, {bpm}]",
        "We hear {players}[ playing in {key}][ at {bpm}][; the mood is {mood}][; the pace is {tempo}]",
    ),
)

FIELDS: dict[str, dict[str, Words]] = {
    "genre": GENRES,
    "mood": MOODS,
    "metre": METRES,
    "dynamics": DYNAMICS,
    "density": DENSITIES,
    "ensemble": ENSEMBLES,
    "accompaniment": ACCOMPANIMENTS,
}
