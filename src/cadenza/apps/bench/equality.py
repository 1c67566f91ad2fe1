"""Equality: the audio of ours and of the peer, greedy and in float32, before anything is timed."""

from typing import Any

import torch

from cadenza.apps.bench.measure import Job
from cadenza.apps.bench.ours import Ours, asking
from cadenza.apps.bench.peer import Peer
from cadenza.core.errors import BenchmarkError

TOLERANCE = 1e-3  # of the loudest sample: both sum in float32, in orders of their own


def compared(ours: Ours, peer: Peer, job: Job) -> dict[str, Any]:
    """How far codes and audio of both are apart; BenchmarkError where they are not the same."""
    system = ours.system
    with torch.inference_mode():
        codes: Any = system.frames(job.items(), sampling={"temperature": 0}, **asking(job))
        mine = system.codec.decode(codes).wave.float().cpu()
    _, theirs, wave = peer.made(job, greedy=True)
    wave = wave.float().cpu()
    same = torch.equal(codes.ids.cpu(), theirs.cpu())
    if mine.shape != wave.shape:
        raise BenchmarkError(f"ours made {list(mine.shape)} samples and transformers {list(wave.shape)}: nothing is compared")
    peak, apart = float(wave.abs().max()), float((mine - wave).abs().max())
    distinct = int(codes.ids.unique().numel())
    if not same or not apart <= TOLERANCE * peak:
        differ = float((codes.ids.cpu() != theirs.cpu()).float().mean())
        raise BenchmarkError(
            f"greedy float32 audio is not the same: {100 * differ:.2f} % of the codes differ, samples by up to {apart:.2g} "
            f"where the loudest is {peak:.2g}; a comparison of speed would mean nothing"
        )
    return {
        "seconds": job.seconds,
        "frames": codes.ids.shape[-1],
        "codes_equal": same,
        "distinct_codes": distinct,
        "max_abs_difference": apart,
        "peak": peak,
        "samples": mine.shape[-1],
    }
