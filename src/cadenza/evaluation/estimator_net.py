"""Features and network of the estimators: a constant-Q spectrogram for pitch, mel bands for rhythm and timbre."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cadenza.dsp.audio import Audio
from cadenza.dsp.spectral import mel_filters

SAMPLE_RATE = 24000
PITCH_HOP, BAND_HOP = 1920, 240  # 12.5 and 100 frames per second
LOWEST_PITCH = 24  # MIDI number of the first semitone
SEMITONES, BINS_PER_SEMITONE = 91, 3  # 33 Hz to 6 kHz in thirds of a semitone
NO_PITCH_CLASS = 12
BANDS = 40
_LONG, _SHORT = 16384, 1024
_SHORTEST, _Q = 4096, 34.0
_MIN_ENERGY = 1e-5  # share of the loudest frame's energy


@dataclass(frozen=True)
class EstimatorFeatures:
    """Features of a batch; `lengths` count valid pitch frames, each of which spans eight band frames."""

    pitch: Float[Tensor, "b rows f"]
    bands: Float[Tensor, "b n g"]
    lengths: Int[Tensor, " b"]


def extract_features(audio: Audio) -> EstimatorFeatures:
    """Compute features of every clip at 24 kHz in mono with RMS 1, padded with zeros at the end."""
    clips = [_clip_features(clip.wave[0, 0]) for clip in audio.to_channels(1).resample(SAMPLE_RATE)]
    lengths = torch.tensor([len(pitch) for pitch, _ in clips])
    pitch, bands = (pad_sequence(list(rows), batch_first=True).mT.contiguous() for rows in zip(*clips, strict=True))
    return EstimatorFeatures(pitch, bands, lengths)


def dominant_pitch_class(pitch: Float[Tensor, "rows f"]) -> Int[Tensor, " f"]:
    """Return the pitch class with the most energy in every frame, 0 for C; 12 for near silence."""
    energy = torch.expm1(pitch).square().unflatten(0, (SEMITONES, BINS_PER_SEMITONE)).sum(1)
    folded = energy.new_zeros(12, pitch.shape[-1]).index_add(0, (torch.arange(SEMITONES) + LOWEST_PITCH) % 12, energy)
    loud = folded.sum(0) > _MIN_ENERGY * energy.sum(0).amax().clamp(min=1e-6)
    return torch.where(loud, folded.argmax(0), NO_PITCH_CLASS)


def _clip_features(wave: Float[Tensor, " t"]) -> tuple[Float[Tensor, "f rows"], Float[Tensor, "g n"]]:
    wave = torch.nan_to_num(wave.detach().to("cpu", torch.float32))
    wave = wave / wave.square().mean().sqrt().clamp(min=1e-5)  # silence remains zero
    frames = max(1, math.ceil(len(wave) / PITCH_HOP))
    wave = F.pad(wave, (0, frames * PITCH_HOP - len(wave)))
    spectrum = torch.fft.rfft(_framed(wave, _LONG, PITCH_HOP))
    real, imaginary = _constant_q_kernels()
    parts = torch.cat([spectrum.real, spectrum.imag], -1)
    pitch = torch.hypot(parts @ real, parts @ imaginary)
    magnitude = torch.fft.rfft(_framed(wave, _SHORT, BAND_HOP) * torch.hann_window(_SHORT)).abs()
    bands = magnitude @ _band_filters().T
    return torch.log1p(20 * pitch), torch.log1p(bands / 4)


def _framed(wave: Float[Tensor, " t"], size: int, hop: int) -> Float[Tensor, "f n"]:
    """Windows of `size` samples, centred on the middles of consecutive hops."""
    before = (size - hop) // 2
    return F.pad(wave, (before, size - hop - before)).unfold(-1, size, hop)


@cache
def _constant_q_kernels() -> tuple[Float[Tensor, "m rows"], Float[Tensor, "m rows"]]:
    """Spectral kernels of the constant-Q transform, real and imaginary part (Brown & Puckette 1992)."""
    rows = SEMITONES * BINS_PER_SEMITONE
    midi = LOWEST_PITCH + (torch.arange(rows, dtype=torch.float64) - (BINS_PER_SEMITONE - 1) / 2) / BINS_PER_SEMITONE
    frequency = 440 * 2 ** ((midi - 69) / 12)
    length = (_Q * SAMPLE_RATE / frequency).clamp(_SHORTEST, _LONG)[:, None]
    time = torch.arange(_LONG, dtype=torch.float64) - (_LONG - 1) / 2
    window = torch.where(time.abs() < length / 2, 0.5 + 0.5 * torch.cos(2 * math.pi * time / length), 0.0)
    window = window / window.sum(-1, keepdim=True)
    atoms = window * torch.exp(-2j * math.pi * frequency[:, None] * time / SAMPLE_RATE)
    # sum over time of wave * atom = sum over bins of rfft(wave) * conj(fft(conj(atom))) / n, negative bins negligible
    kernels = torch.fft.fft(atoms.conj())[:, : _LONG // 2 + 1].conj() / _LONG
    a, b = kernels.real.T, kernels.imag.T
    return torch.cat([a, -b]).float(), torch.cat([b, a]).float()


@cache
def _band_filters() -> Float[Tensor, "n m"]:
    """Mel filters from 30 Hz to 11.5 kHz; the weights of each sum to one."""
    filters = mel_filters(SAMPLE_RATE, _SHORT, mels=BANDS, f_min=30.0, f_max=11500.0)
    return filters / filters.sum(-1, keepdim=True)


MIN_TEMPO, TEMPI_PER_OCTAVE = 44.0, 45  # beats per minute of the first tempo class; classes per octave
NUM_TEMPI = 98  # up to 196 beats per minute
CHORDS = 25  # twelve major, twelve minor, none
_AXIS_MIN_TEMPO, _AXIS = 15.0, 256  # first tempo and steps of the axis of periodicities
_HARMONICS = (0, -12, 12, 19, 24, 28)
_GROUPS = 8  # of mel bands
_ENDS = 9  # pairs of pitch frames in the first and in the last second and a half
_SIZE = 4096  # Fourier transform of onsets: 41 seconds, half of them zeros


@dataclass(frozen=True)
class EstimatorOutputs:
    """Logits of a batch; key and chords count 12 majors from C, then 12 minors, then (chords) none."""

    tempo: Float[Tensor, "b tempi"]
    key: Float[Tensor, "b 24"]
    families: Float[Tensor, "b n"]
    playing: Float[Tensor, "b n g"]  # families in every pair of frames
    lead: Float[Tensor, "b n"]
    chords: Float[Tensor, "b 25 f"]
    melody: Float[Tensor, "b semitones f"]  # the last row means no melody


class EstimatorNet(nn.Module):
    """Network from features to logits, independent of the other clips of a batch."""

    def __init__(self, families: int, *, width: int = 16, folded: int = 40, dropout: float = 0.2) -> None:
        super().__init__()
        self.width, self.folded = width, folded
        sound = 3 * folded
        self.pitch_in = _Block2d(BINS_PER_SEMITONE * len(_HARMONICS), width, (3, 3))
        self.pitch = nn.ModuleList([_Block2d(width, width, (5, 3)), _Block2d(width, width, (3, 5))])
        self.crowd = nn.Conv1d(2 * width, width, 1)
        self.melody = _Block2d(width, width, (3, 5))
        self.melody_pitch, self.melody_none = nn.Conv2d(width, 1, 1), nn.Conv1d(2 * width, 1, 3, padding=1)
        self.fold = nn.Conv2d(width * 8, folded, (1, 2), (1, 2))
        self.circle = nn.ModuleList([_Circle(folded, 5), _Circle(folded, 7)])
        self.chord, self.no_chord = nn.Conv2d(folded, 2, 1), nn.Conv1d(folded, 1, 1)
        self.key_in, self.key = nn.Conv1d(4 * folded, folded, 12), nn.Conv1d(folded, 2, 1)
        self.timbre = nn.ModuleList([_Block2d(width, folded, (3, 3), (3, 2)), _Block2d(folded, folded, (3, 3), (3, 1))])
        attack = ((1, width, (5, 5), (2, 4)), (width, folded, (3, 3), (2, 2)), (folded, folded, (3, 3), (2, 1)))
        self.attack = nn.ModuleList([_Block2d(*sizes) for sizes in attack])
        self.moment = nn.Sequential(nn.Conv1d((11 + 5) * folded, sound, 1), nn.ReLU(), nn.Dropout(dropout))
        self.playing = nn.Conv1d(sound, families, 1)
        self.sound = nn.Sequential(nn.Linear(2 * sound, sound), nn.ReLU(), nn.Dropout(dropout))
        self.families, self.lead = nn.Linear(sound, families), nn.Linear(sound, families)
        onsets = (nn.Conv1d(2 * (_GROUPS + 1), 24, 7, padding=3), nn.BatchNorm1d(24), nn.ReLU())
        periods = (nn.Conv1d(24, 24, 129, padding=64), nn.BatchNorm1d(24), nn.ReLU())
        output = (nn.Conv1d(24, 24, 5, padding=2), nn.ReLU(), nn.Dropout(dropout / 2), nn.Conv1d(24, 1, 1))
        self.pulse = nn.Sequential(*onsets, *periods, *output)
        self.tempo = nn.Linear(sound, NUM_TEMPI)

    def forward(self, features: EstimatorFeatures) -> EstimatorOutputs:
        mask = torch.arange(features.pitch.shape[-1], device=features.pitch.device) < features.lengths[:, None]
        x = self._pitches(features.pitch, mask)
        crowd = torch.cat([x.mean(2), x.amax(2)], 1)
        x = F.relu(x + self.crowd(crowd)[:, :, None]) * mask[:, None, None]
        moments = self._moments(x, features.bands, mask)
        pairs = mask[:, None, ::2]
        sound = self.sound(torch.cat([_mean(moments, pairs), (moments * pairs).amax(-1)], 1))
        tune = self.melody(x, mask)
        none = self.melody_none(torch.cat([tune.mean(2), tune.amax(2)], 1))
        melody = torch.cat([self.melody_pitch(tune)[:, 0], none], 1)
        chroma = self._chroma(x, mask)
        chords = torch.cat([rearrange(self.chord(chroma), "b q p f -> b (q p) f"), self.no_chord(chroma.mean(2))], 1)
        chords = chords.repeat_interleave(2, -1)[..., : mask.shape[-1]]
        tempo = self._tempo(features.bands, mask) + self.tempo(sound)
        key = self._key(chroma, mask[:, ::2])
        return EstimatorOutputs(tempo, key, self.families(sound), self.playing(moments), self.lead(sound), chords, melody)

    def _pitches(self, pitch: Float[Tensor, "b rows f"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b w s f"]:
        """Stack every semitone with its harmonics, then apply convolutions."""
        x = rearrange(pitch, "b (s p) f -> b p s f", p=BINS_PER_SEMITONE)
        stack = [F.pad(x, (0, 0, max(-h, 0), max(h, 0)))[:, :, max(h, 0) : max(h, 0) + SEMITONES] for h in _HARMONICS]
        x = self.pitch_in(torch.cat(stack, 1), mask)
        for block in self.pitch:
            x = x + block(x, mask)
        return x

    def _chroma(self, x: Float[Tensor, "b w s f"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b v 12 g"]:
        """Combine the octaves of each pitch class at half the frame rate, then convolve over pitch classes."""
        x = F.pad(x, (0, x.shape[-1] % 2, 0, 96 - SEMITONES))  # frames in pairs, twelve semitones in each octave
        octaves = rearrange(x, "b w (o p) f -> b (w o) p f", p=12)
        pairs = mask[:, ::2]
        chroma = F.relu(self.fold(octaves)) * pairs[:, None, None]
        for block in self.circle:
            chroma = chroma + block(chroma, pairs)
        return chroma

    def _key(self, chroma: Float[Tensor, "b v 12 f"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b 24"]:
        """Key from the means of the clip, its first and its last 1.5 seconds, and from its maximum."""
        frame = torch.arange(mask.shape[-1], device=mask.device)
        length = mask.sum(-1, keepdim=True)
        moments = [mask, mask & (frame < _ENDS), mask & (frame >= length - _ENDS)]
        means = [_mean(chroma, moment[:, None, None]) for moment in moments]
        views = torch.cat([*means, chroma.amax(-1)], 1)
        around = F.relu(self.key_in(torch.cat([views, views[..., :-1]], -1)))
        return rearrange(self.key(around), "b q p -> b (q p)")

    def _moments(self, x: Tensor, bands: Float[Tensor, "b n g"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b e g"]:
        """Features of every pair of frames: partials from the pitches, attacks from the bands."""
        partials, attacks = x, bands[:, None]
        for block in self.timbre:
            partials = block(partials, mask)
        for block in self.attack:
            attacks = block(attacks, mask)
        attacks = F.max_pool2d(attacks, (1, 2), ceil_mode=True)
        return self.moment(torch.cat([partials.flatten(1, 2), attacks.flatten(1, 2)], 1))

    def _tempo(self, bands: Float[Tensor, "b n g"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b tempi"]:
        """Strength of onset periodicity at each tempo, compared with its multiples and fractions."""
        band_mask = repeat(mask, "b f -> b 1 (f r)", r=PITCH_HOP // BAND_HOP)
        axis = self.pulse(tempogram(bands, band_mask)).squeeze(1)
        first = round(TEMPI_PER_OCTAVE * math.log2(MIN_TEMPO / _AXIS_MIN_TEMPO))
        return axis[:, first : first + NUM_TEMPI]


def decode_tempo(logits: Float[Tensor, " tempi"]) -> float:
    """Return the centre of the 4 % of the tempo axis with the most probability, in beats per minute."""
    probability = logits.float().softmax(-1)
    smooth = F.avg_pool1d(probability[None], 5, 1, 2, count_include_pad=True)[0]
    best = int(smooth.argmax())
    low, high = max(best - 2, 0), min(best + 3, NUM_TEMPI)
    weights = probability[low:high]
    step = float((torch.arange(low, high) * weights).sum() / weights.sum())
    return MIN_TEMPO * 2 ** (step / TEMPI_PER_OCTAVE)


def pitch_classes(probability: Float[Tensor, "b semitones f"]) -> Float[Tensor, "b 13 f"]:
    """Sum probabilities of melody pitches into twelve pitch classes and none."""
    folded = probability.new_zeros(probability.shape[0], NO_PITCH_CLASS + 1, probability.shape[-1])
    classes = torch.cat([(torch.arange(SEMITONES) + LOWEST_PITCH) % 12, torch.tensor([NO_PITCH_CLASS])])
    return folded.index_add(1, classes.to(probability.device), probability)


def tempogram(bands: Float[Tensor, "b n g"], mask: Bool[Tensor, "b 1 g"]) -> Float[Tensor, "b m axis"]:
    """Compute autocorrelation and spectrum of onset strengths on one axis of log tempo (Grosche & Müller 2011)."""
    rise = F.relu(bands[..., 2:] - bands[..., :-2])
    rise = F.pad(rise, (1, 1)) * F.pad(mask, (0, 2))[..., 2:]  # not past the end of a clip
    groups = rearrange(rise, "b (m n) g -> b m n g", m=_GROUPS, n=BANDS // _GROUPS).mean(2)
    onsets = torch.cat([groups, rise.mean(1, keepdim=True)], 1)
    onsets = (onsets - _mean(onsets, mask)[..., None]) * mask
    size = max(_SIZE, 2 * onsets.shape[-1])
    spectrum = torch.fft.rfft(onsets.float(), n=size)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=size)
    energy = correlation[..., :1].clamp(min=1e-6)
    tempi = _AXIS_MIN_TEMPO * 2 ** (torch.arange(_AXIS, device=bands.device) / TEMPI_PER_OCTAVE)
    lag = 60 / tempi * SAMPLE_RATE / BAND_HOP
    bins = tempi / 60 / (SAMPLE_RATE / BAND_HOP) * size
    repeats = _interpolate(correlation / energy, lag)
    strengths = _interpolate(spectrum.abs() / (energy * mask.sum(-1, keepdim=True)).sqrt(), bins)
    return torch.cat([repeats, strengths], 1)


def _interpolate(values: Float[Tensor, "b m t"], index: Float[Tensor, " axis"]) -> Float[Tensor, "b m axis"]:
    """Values at fractional indices, 0 past the end."""
    last = values.shape[-1] - 2
    low = index.floor().clamp(max=last)
    part, low = index - low, low.long()
    return torch.where(index <= last, values[..., low] * (1 - part) + values[..., low + 1] * part, 0.0)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum(-1) / mask.sum(-1).clamp(min=1)


class _Block2d(nn.Module):
    """Convolution, normalisation and ReLU; frames outside the mask stay zero."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=(size[0] // 2, size[1] // 2), bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c s f"], mask: Bool[Tensor, "b f"]) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        frames = torch.arange(x.shape[-1], device=mask.device) * mask.shape[-1] // x.shape[-1]  # mask at the rate of x
        return x * mask[:, frames][:, None, None]


class _Circle(nn.Module):
    """Circular convolution over twelve pitch classes, then a convolution over time."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, (12, 1))
        self.along = nn.Conv2d(width, width, (1, frames), padding=(0, frames // 2), bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "b c 12 f"], mask: Bool[Tensor, "b f"]) -> Float[Tensor, "b c 12 f"]:
        x = F.relu(self.around(torch.cat([x, x[:, :, :-1]], 2))) * mask[:, None, None]
        x = F.relu(self.norm(self.along(x)))
        return x * mask[:, None, None]
