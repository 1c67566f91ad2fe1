"""Files of codes: a safetensors file with the spec of the codec in its metadata."""

import json
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cadenza.codecs.base import CodecSpec
from cadenza.core.atomic import atomic_write
from cadenza.core.errors import DataError
from cadenza.core.types import Codes


def save_codes(path: str | Path, codes: Codes, codec: CodecSpec) -> None:
    """Write `ids`, `lengths` and, if known, `samples` and `scale`, atomically; raise DataError if that fails."""
    tensors = {name: value.cpu().contiguous() for name, value in vars(codes).items() if value is not None}
    with atomic_write(path, DataError) as file:
        file.write(save(tensors, {"codec": json.dumps(codec.to_dict())}))


def load_codes(path: str | Path, codec: CodecSpec) -> Codes:
    """Load codes; raise DataError if another codec made them or they do not match its frame format."""
    try:
        with safe_open(path, "pt") as file:
            written = json.loads((file.metadata() or {}).get("codec", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable file of codes ({error}); write it with `cadenza encode`") from None
    if written is None:
        raise DataError(f"{path}: not a file of codes, but another safetensors file; write one with `cadenza encode`")
    if CodecSpec.parse(written, source=str(path)) != codec:
        raise DataError(f"{path}: was made by another codec; decode it with the model that encoded it")
    if not {"ids", "lengths"} <= tensors.keys() <= {field.name for field in fields(Codes)} or not tensors["ids"].numel():
        raise DataError(f"{path}: has no codes ({', '.join(tensors) or 'nothing'}); write it with `cadenza encode`")
    codes, (rows, size) = Codes(**tensors), (codec.frame_format.channels, codec.frame_format.cardinality)
    if codes.ids.shape[1] > rows or int(codes.ids.min()) < 0 or int(codes.ids.max()) >= size:
        raise DataError(f"{path}: codes must be {rows} rows of 0 to {size - 1}; encode the audio again")
    return codes
