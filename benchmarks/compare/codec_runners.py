"""Sound: EnCodec alone, ours and that of transformers, there and back."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.apps.bench import BenchJob, TimedRun, synchronized_time
from cadenza.core.errors import BenchmarkError
from cadenza.dsp.audio import Audio
from compare.library import import_transformers
from compare.measure import Runner

TOLERANCE = 1e-4  # of samples, where the loudest is about 1


class _Sound(Runner):
    """A codec alone, of a folder."""

    def __init__(self, folder: Path, *, device: torch.device, threads: int) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self._model: Any = None

    def read(self) -> Any:
        """The codec, with its weights."""
        raise NotImplementedError(f"{type(self).__name__} must say what is read")

    def made(self, job: BenchJob) -> tuple[TimedRun, Tensor, Tensor]:
        """The run, the codes [b k f] and the audio that comes back [b c t]."""
        raise NotImplementedError(f"{type(self).__name__} must encode and decode")

    def open(self) -> None:
        if self._model is None:
            self._model = self.read()

    def close(self) -> None:
        self._model = None
        gc.collect()

    def run(self, job: BenchJob) -> TimedRun:
        return self.made(job)[0]


class CadenzaCodecRunner(_Sound):
    """The codec of a folder."""

    name = "cadenza float32"

    def read(self) -> Any:
        from cadenza.apps.api import load

        return load(self.folder, device=self.device).codec

    @torch.inference_mode()
    def made(self, job: BenchJob) -> tuple[TimedRun, Tensor, Tensor]:
        """The run, the codes [b k f] and the audio that comes back [b c t]."""
        self.open()
        spec = self._model.spec
        audio = Audio(random_audio(job, spec.sample_rate, self.device), spec.sample_rate)
        start = synchronized_time(self.device)
        codes = self._model.encode(audio)
        middle = synchronized_time(self.device)
        back = self._model.decode(codes)
        end = synchronized_time(self.device)
        return TimedRun({"encode": middle - start, "decode": end - middle}, job.seconds * job.batch), codes.ids, back.wave


class TransformersCodecRunner(_Sound):
    """EncodecModel of a folder, at its highest bandwidth."""

    name = "transformers float32"

    def read(self) -> Any:
        return import_transformers().EncodecModel.from_pretrained(self.folder).to(self.device).eval()

    @torch.inference_mode()
    def made(self, job: BenchJob) -> tuple[TimedRun, Tensor, Tensor]:
        """As ours."""
        self.open()
        config = self._model.config
        wave = random_audio(job, config.sampling_rate, self.device)
        start = synchronized_time(self.device)
        coded = self._model.encode(wave, bandwidth=config.target_bandwidths[-1])
        middle = synchronized_time(self.device)
        back = self._model.decode(coded.audio_codes, coded.audio_scales).audio_values
        end = synchronized_time(self.device)
        return TimedRun({"encode": middle - start, "decode": end - middle}, job.seconds * job.batch), coded.audio_codes[0], back


def random_audio(job: BenchJob, sample_rate: int, device: torch.device) -> Tensor:
    """Clips [b 1 t] of quiet noise, the same each time."""
    rng = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(job.batch, 1, round(job.seconds * sample_rate), generator=rng)).to(device)


def check_equal_codec(ours: CadenzaCodecRunner, peer: TransformersCodecRunner, job: BenchJob) -> dict[str, Any]:
    """How far codes and audio of both are apart; BenchmarkError where they are not the same.

    A vector may lie as near to one entry of a codebook as to another, so one code in a thousand may differ; the audio
    is then that of the same codes.
    """
    (_, mine, wave), (_, theirs, other) = ours.made(job), peer.made(job)
    if mine.shape != theirs.shape or wave.shape != other.shape:
        raise BenchmarkError(f"codes {list(mine.shape)} and {list(theirs.shape)} cannot be compared")
    differ = float((mine != theirs).float().mean())
    apart, loudest = float((wave - other).abs().max()), float(other.abs().max())
    if differ > 1e-3 or (differ == 0 and not apart <= TOLERANCE * max(1.0, loudest)):
        raise BenchmarkError(
            f"the codecs are not the same: {100 * differ:.2f} % of the codes differ, samples by up to {apart:.2g}; "
            "a comparison of speed would mean nothing"
        )
    found = {"seconds": job.seconds, "codes_equal": differ == 0, "share_of_codes_that_differ": differ}
    return found | {"max_abs_difference": apart, "peak": loudest, "distinct_codes": int(mine.unique().numel())}
