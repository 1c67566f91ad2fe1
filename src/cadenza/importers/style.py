"""The style of MusicGen-Style in AudioCraft's packages: its config, and its weights by our names."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.importers.section import ConfigReader

STYLE = "style"  # how it is called here; there it is 'self_wav'
_MERT = "m-a-p/MERT-v1-95M"
_SCALES = {"none": (512, 8, 0), "xsmall": (256, 8, 4), "default": (512, 8, 8), "large": (1024, 16, 24)}  # hidden, heads, depth
_NAMES = (  # AudioCraft's -> ours
    (re.compile(r"embed\.(weight|bias)"), r"up.\1"),
    (re.compile(r"output_proj\.(weight|bias)"), r"out.\1"),
    (re.compile(r"transformer\.layers\.(\d+)\.self_attn\.in_proj_weight"), r"blocks.\1.attention.qkv.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.self_attn\.out_proj\.weight"), r"blocks.\1.attention.out.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.linear1\.weight"), r"blocks.\1.up.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.linear2\.weight"), r"blocks.\1.down.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.norm([12])\.(weight|bias)"), r"blocks.\1.norm\2.\3"),
    (re.compile(r"batch_norm\.(running_mean|running_var)"), r"bottleneck.norm.\1"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.embed"), r"bottleneck.quantizer.levels.\1.embed"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.cluster_size"), r"bottleneck.quantizer.levels.\1.usage"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.embed_avg"), r"bottleneck.quantizer.levels.\1.total"),
)


def style_spec_from_audiocraft(style: ConfigReader, *, folder: Path, dim: int, width: int) -> dict[str, Any]:
    """The style of a package; what it listens with is a folder beside the package, or named in the hub."""
    style.require_value("model_name", "mert", why="is heard with a codec of its own, whose weights are not in the package")
    style.ignore(["sample_rate", "encodec_checkpoint", "encodec_n_q", "device"])  # of that codec; MERT hears 24 kHz
    style.ignore(["compute_mask", "num_codebooks_lm", "ds_rate_compression"])  # of the loss
    style.ignore(["q_dropout", "rvq_threshold_ema_dead_code", "use_middle_of_segment"])
    style.require_value("batch_norm", True)
    scale = style.get("transformer_scale", str, "default")
    if scale not in _SCALES:
        style.unsupported("transformer_scale", f"'{scale}' is not known; it is one of {', '.join(_SCALES)}")
    hidden, heads, depth = _SCALES.get(scale, _SCALES["default"])
    beside = folder / _MERT.rpartition("/")[2]
    lasting = style.get("varying_lengths", (list, type(None)), (1.5, 4.5))
    spec = {
        "type": "style",
        "model": str(beside) if (beside / "config.json").exists() else _MERT,
        "dim": dim,
        "output_dim": width,
        "hidden": hidden,
        "heads": heads,
        "depth": depth,
        "levels": style.get("n_q_out", int, 6),
        "eval_q": style.get("eval_q", int, 3),
        "bins": style.get("bins", int, 1024),
        "downsample": style.get("ds_factor", int, 15),
        "seconds": style.get("length", float, 3.0),
        "train_seconds_range": list(lasting) if lasting else None,
        "null_embedding": "zeros",
    }
    style.reject_unread()
    return spec


def convert_style_weights(held: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """A style's weights by our names, the averages of its codebooks as shares; unknown ones keep their names."""
    ours: dict[str, Tensor] = {}
    for name, x in held.items():
        if name.endswith("._codebook.inited"):
            if not bool(x):
                raise CheckpointError(f"{source}: {name} is 0, so its codebook was never fitted; take a trained checkpoint")
        elif name != "batch_norm.num_batches_tracked":
            new = next((pattern.sub(to, name) for pattern, to in _NAMES if pattern.fullmatch(name)), name)
            ours[new] = x.float()
    for name in [name for name in ours if name.endswith(".usage")]:
        total = name.removesuffix("usage") + "total"
        seen = ours[name].sum().clamp(min=1e-12)
        ours[name] = ours[name] / seen
        if total in ours:
            ours[total] = ours[total] / seen
    return ours
