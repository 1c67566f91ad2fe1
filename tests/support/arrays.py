"""Encoded clips without a codec, whose frames identify them."""

import json

import numpy as np

from cadenza.core.types import FrameFormat

LATENTS = FrameFormat("latents", 25.0, 4, 0)


def encoded(path, frames, start=0.0, real=None, codes=False, **said):
    """A clip whose every frame says which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.tile(np.arange(frames), (2, 1)) % 16 if codes else np.arange(frames) + 1000.0 * np.arange(4)[:, None]
    np.save(path, rows.astype(np.int64 if codes else np.float32))
    mask = [1] * (real or frames) + [0] * (frames - (real or frames))
    about = {"seconds_start": start, "seconds_total": 60, "padding_mask": mask, "path": "/old/place.wav", **said}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path
