"""Equality: the audio of ours and of the peer, greedy and in float32, before anything is timed."""

from typing import Any

import torch

from cadenza.apps.bench import BenchJob
from cadenza.core.errors import BenchmarkError
from compare.cadenza_runner import CadenzaRunner
from compare.peer import TransformersRunner

TOLERANCE = 1e-3  # of the loudest sample: both sum in float32, in orders of their own


WORDS = (20, 23, 29)  # of the prompts that are tried: two codes may be so near to each other that rounding decides


def check_equal_output(ours: CadenzaRunner, peer: TransformersRunner, seconds: float) -> dict[str, Any]:
    """How far codes and audio of both are apart for the first prompt at which they are the same; BenchmarkError for none."""
    for tried, words in enumerate(WORDS, 1):
        try:
            return compare_outputs(ours, peer, BenchJob(seconds, words=words)) | {"prompts_tried": tried}
        except BenchmarkError:
            if words == WORDS[-1]:
                raise
    raise AssertionError("there are prompts")


def compare_outputs(ours: CadenzaRunner, peer: TransformersRunner, job: BenchJob) -> dict[str, Any]:
    """How far codes and audio of both are apart, one model after the other in memory.

    BenchmarkError where they are not the same.
    """
    system = ours.system
    with torch.inference_mode():
        codes: Any = system.generate_frames(job.request(), sampling={"temperature": 0})
        mine, ids = system.codec.decode(codes).wave.float().cpu(), codes.ids.cpu()
    del system
    ours.close()
    _, theirs, wave = peer.generate(job, greedy=True)
    wave, theirs = wave.float().cpu(), theirs.cpu()
    peer.close()
    if mine.shape != wave.shape or ids.shape != theirs.shape:
        raise BenchmarkError(f"ours made {list(mine.shape)} samples, transformers {list(wave.shape)}: they cannot be compared")
    peak, apart = float(wave.abs().max()), float((mine - wave).abs().max())
    same = torch.equal(ids, theirs)
    if not same or not apart <= TOLERANCE * peak:
        raise BenchmarkError(
            f"greedy float32 audio is not the same: {100 * float((ids != theirs).float().mean()):.2f} % of the codes differ, "
            f"samples by up to {apart:.2g} where the loudest is {peak:.2g}; a comparison of speed would mean nothing"
        )
    return {
        "seconds": job.seconds,
        "frames": ids.shape[-1],
        "samples": mine.shape[-1],
        "codes_equal": same,
        "distinct_codes": int(ids.unique().numel()),
        "max_abs_difference": apart,
        "peak": peak,
    }
