"""Tensors read one by one from safetensors files, against the library of that format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cadenza.core import checkpoint
from cadenza.core.checkpoint import LazyTensor, open_safetensors
from cadenza.core.errors import CheckpointError

TENSORS = {
    "wide": torch.randn(70, 3, 5),
    "half": torch.randn(4, 2).half(),
    "brain": torch.randn(9).bfloat16(),
    "bytes": torch.arange(-8, 8, dtype=torch.int8).view(4, 4),
    "counts": torch.arange(3),
    "truth": torch.tensor([True, False]),
    "number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
}


def test_what_is_read_is_what_safetensors_reads(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "it.safetensors", {"format": "pt"})
    expected, found = load_file(tmp_path / "it.safetensors"), open_safetensors(tmp_path / "it.safetensors")
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == tuple(x.shape) and found[name].dtype == x.dtype
        assert torch.equal(found[name].load(), x) and found[name].load().dtype == x.dtype


def test_rows_come_in_pieces_that_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 10 * 15 * 4)
    save_file(TENSORS, tmp_path / "it.safetensors")
    for record in (open_safetensors(tmp_path / "it.safetensors")["wide"], LazyTensor.from_tensor(TENSORS["wide"])):
        for multiple, sizes in {1: [10] * 7, 4: [8] * 8 + [6], 64: [64, 6]}.items():
            pieces = list(record.iter_row_chunks(multiple))
            assert [len(x) for _, x in pieces] == sizes
            assert all(torch.equal(x, TENSORS["wide"][at : at + len(x)]) for at, x in pieces)
    for record in (open_safetensors(tmp_path / "it.safetensors")["number"], LazyTensor.from_tensor(TENSORS["number"])):
        assert [(at, x.item(), x.ndim) for at, x in record.iter_row_chunks()] == [(0, 2.5, 0)]


def _file(path: Path, header: Any, data: bytes = b"\0" * 8, size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 10),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 2**40),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, None),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, None),
        ({"a": {"shape": [2]}}, None),
        ({"a": 3}, None),
        ([1], None),
        (b"\xff\xfe", None),
        (b"{", None),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, header: Any, size: int | None) -> None:
    path = _file(tmp_path / "it.safetensors", header, size=size)
    with pytest.raises(CheckpointError, match="it.safetensors is not a whole safetensors file .*copy it again"):
        open_safetensors(path)
    for data in (b"", b"\0\0\0"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            open_safetensors(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "it.safetensors")
    found = open_safetensors(tmp_path / "it.safetensors")
    (tmp_path / "it.safetensors").write_bytes((tmp_path / "it.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="became shorter.*copy it again"):
        found["a"].load()
