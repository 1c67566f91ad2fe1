"""Rendered audio against the notes that it was rendered from; needs FluidSynth with FluidR3_GM."""

from dataclasses import replace

import numpy as np
import pytest

from cadenza.core.errors import DataError
from cadenza.corpus import render
from cadenza.corpus.compose import compose_piece, plan_piece
from cadenza.corpus.piece import ChordSegment, InstrumentPart, Note, Piece
from cadenza.corpus.render import gated_level_db, master_clip, render_clips, render_pieces, room_impulse_response
from cadenza.corpus.tables import load_tables
from cadenza.corpus.theory import ChordSymbol

RATE = 24_000


def one_note(name: str, pitch: int, start: float = 0.0) -> Piece:
    """A piece in which one instrument plays one note of two beats."""
    part = InstrumentPart("melody", load_tables().instruments[name])
    plan = replace(plan_piece(1, 0)[0], parts=(part,), ensemble="alone", dynamics="medium", bpm=80, bars=4)
    segment = ChordSegment(0.0, float(plan.beats), ChordSymbol(pitch % 12, "maj"))
    return Piece(plan, (segment,), (Note(start, 2.0, pitch, 90, "melody"),))


def peak_frequency(wave: np.ndarray, low: float, high: float) -> float:
    """The strongest frequency in a band, refined by a parabola through the peak."""
    size = 1 << 18
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    band = np.flatnonzero((hertz > low) & (hertz < high))
    return float(hertz[band[np.argmax(power[band])]])


@pytest.fixture(scope="module")
def batch():
    return render_clips(41, range(6), RATE)


@pytest.mark.needs("fluidsynth")
def test_a_note_sounds_at_its_pitch_and_starts_at_its_time():
    tones = [
        ("flute", 81, 0.0),
        ("piano", 69, 0.0),
        ("violin", 76, 3.0),
        ("electric bass", 40, 1.5),
        ("trumpet", 65, 0.0),
        ("harp", 72, 6.0),
    ]
    pieces = [one_note(*tone) for tone in tones]
    for (name, pitch, start), piece, dry in zip(tones, pieces, render_pieces(pieces), strict=True):
        wave = master_clip(dry, piece, seed=0, index=0, sample_rate=RATE)
        begin = piece.plan.beat_to_seconds(start)
        sounding = wave[int((begin + 0.1) * RATE) : int((begin + 1.3) * RATE)]
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        assert peak_frequency(sounding, hertz * 0.75, hertz * 1.4) == pytest.approx(hertz, rel=0.012), name
        level = np.abs(wave)
        onset = np.argmax(level > 0.03 * level.max()) / RATE
        assert onset == pytest.approx(begin, abs=0.03), name
        assert begin == 0 or level[: int((begin - 0.01) * RATE)].max() < 0.001


@pytest.mark.needs("fluidsynth")
def test_clips_have_their_length_and_begin_with_the_music(batch):
    for piece, wave in batch:
        assert len(wave) == round(piece.plan.seconds * RATE)
        level = np.abs(wave)
        assert np.argmax(level > 0.02 * level.max()) / RATE < 0.03


@pytest.mark.needs("fluidsynth")
def test_clips_neither_clip_nor_fall_silent_and_end_in_silence(batch):
    for piece, wave in batch:
        assert wave.dtype == np.float32
        assert np.all(np.isfinite(wave))
        assert np.abs(wave).max() <= 0.98
        assert -30 < 10 * np.log10(np.mean(wave**2)) < -12
        seconds = len(wave) // RATE
        music = wave[: int(piece.plan.beats * piece.plan.beat_seconds * RATE)]
        parts = [np.sqrt(np.mean(p**2)) for p in np.array_split(music, seconds)]
        assert min(parts) > 10 ** (-60 / 20)
        assert np.abs(wave[-24:]).max() < 1e-3


@pytest.mark.needs("fluidsynth")
def test_clips_do_not_bleed_into_each_other():
    loud, soft = compose_piece(41, 2), one_note("flute", 79, start=3.0)
    alone = render_pieces([soft])[0]
    after = render_pieces([loud, soft])[1]
    assert np.abs(after[: 2 * render.FLUIDSYNTH_RATE]).max() < 1e-4
    assert np.abs(after - alone).max() < 0.01 * np.abs(alone).max()


@pytest.mark.needs("fluidsynth")
def test_a_clip_does_not_depend_on_the_clips_that_follow(batch):
    fewer = render_clips(41, range(3), RATE)
    for (_, a), (_, b) in zip(fewer, batch, strict=False):
        assert np.array_equal(a, b)


@pytest.mark.needs("fluidsynth")
def test_onsets_of_drums_fall_on_their_times():
    piece = next(
        p for p in (compose_piece(43, i) for i in range(200)) if p.plan.genre.name == "electronic" and p.plan.find_part("drums")
    )
    wave = master_clip(render_pieces([piece])[0], piece, seed=43, index=0, sample_rate=RATE)
    frames = np.array([np.abs(np.fft.rfft(wave[i : i + 512] * np.hanning(512))) for i in range(0, len(wave) - 512, 120)])
    flux = np.maximum(0, np.diff(np.log1p(50 * frames), axis=0)).sum(1)
    times = (np.arange(len(flux)) * 120 + 120 + 256) / RATE
    kicks = sorted({piece.note_to_seconds(n)[0] for n in piece.notes if n.role == "drums" and n.pitch == 36 and n.start > 0})
    near = [flux[np.abs(times - k) < 0.025].max() for k in kicks]
    assert np.mean(near) > 3 * np.median(flux)


def test_the_level_of_a_tone_is_its_power_with_or_without_silence():
    time = np.arange(RATE * 4) / RATE
    tone = 0.1 * np.sin(2 * np.pi * 500 * time)
    assert gated_level_db(tone, RATE) == pytest.approx(-23.01, abs=0.05)
    assert gated_level_db(np.concatenate([tone, np.zeros(RATE * 4)]), RATE) == pytest.approx(-23.01, abs=0.05)


def test_reverberation_falls_by_60_db_in_its_decay_time():
    response = room_impulse_response(np.random.default_rng(0), 1.0, RATE)
    early = np.mean(response[int(0.1 * RATE) : int(0.2 * RATE)] ** 2)
    late = np.mean(response[int(0.6 * RATE) : int(0.7 * RATE)] ** 2)
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)
    assert np.sum(response**2) == pytest.approx(1, abs=1e-6)


def test_a_missing_program_is_named_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get install fluidsynth fluid-soundfont-gm"):
        render.find_fluidsynth()


def test_a_missing_soundfont_is_named_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_SOUNDFONT", str(tmp_path / "none.sf2"))
    with pytest.raises(DataError, match="CADENZA_SOUNDFONT is"):
        render.find_soundfont()
    monkeypatch.delenv("CADENZA_SOUNDFONT")
    monkeypatch.setattr(render, "SOUNDFONT_PATHS", (str(tmp_path / "a.sf2"),))
    with pytest.raises(DataError, match="apt-get install"):
        render.find_soundfont()
