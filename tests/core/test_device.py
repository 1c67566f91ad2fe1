"""The device and precision chosen on machines of many kinds, and the reason given."""

from typing import Any

import pytest
import torch

from cadenza.core import device as module
from cadenza.core.device import select_device
from cadenza.core.errors import RequestError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch say that it sees other devices."""

    def there(
        *, gpus: int = 0, mps: bool = False, capability: tuple[int, int] = (9, 0), hip: str | None = None, problem: str = ""
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.version, "cuda", None if hip else "13.0")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(module, "_problem", lambda _: problem or None)

    return there


def test_the_gpu_is_taken_where_it_answers_and_the_reason_names_it(machine: Any) -> None:
    machine(gpus=1)
    found = select_device()
    assert found.device == torch.device("cuda") and found.dtype == torch.float32
    assert str(found).startswith("cuda, float32: Some GPU with CUDA 13.0; float32 by default")
    machine(gpus=1, hip="7.0")
    assert "with ROCm 7.0" in select_device().reason
    machine(gpus=1, problem="no kernel image is available")
    assert select_device().device.type == "cpu" and "does not work (no kernel image is available)" in select_device().reason
    machine()
    assert str(select_device()).startswith("cpu, float32: torch sees no GPU")
    machine(mps=True)
    assert select_device().device.type == "cpu" and 'device="mps"' in select_device().reason


@pytest.mark.parametrize(
    ("there", "device", "half"),
    [
        ({"gpus": 1, "capability": (9, 0)}, None, torch.bfloat16),
        ({"gpus": 1, "capability": (8, 0)}, "cuda:0", torch.bfloat16),
        ({"gpus": 1, "capability": (7, 5)}, "cuda", torch.float16),
        ({"gpus": 1, "capability": (7, 5), "hip": "7.0"}, "cuda", torch.bfloat16),
        ({"mps": True}, "mps", torch.float16),
        ({}, None, torch.bfloat16),
    ],
)
def test_half_is_what_the_device_has(machine: Any, there: dict[str, Any], device: str | None, half: torch.dtype) -> None:
    machine(**there)
    assert (
        select_device(device, "half").dtype == half and str(half).removeprefix("torch.") in select_device(device, "half").reason
    )
    assert select_device(device).dtype == torch.float32


def test_what_is_asked_for_is_given(machine: Any) -> None:
    machine(gpus=2)
    assert select_device("cuda:1", "float16") == select_device(torch.device("cuda:1"), torch.float16)
    assert select_device("cpu", torch.bfloat16).device.type == "cpu"
    assert select_device("cuda").device == torch.device("cuda")


@pytest.mark.parametrize(
    ("there", "device", "message"),
    [
        ({}, "cuda", "device 'cuda' not found.*Available: cpu"),
        ({"gpus": 2}, "cuda:2", "device 'cuda:2' not found.*Available: cuda:0, cuda:1, cpu"),
        ({"gpus": 1}, "mps", "device 'mps' not found.*Available: cuda:0, cpu"),
        ({"mps": True}, "gpu", "'gpu' is not a kind of device. Available: mps, cpu"),
        ({"gpus": 1, "problem": "out of memory"}, "cuda", r"does not work \(out of memory\). Also available: cpu"),
    ],
)
def test_errors_name_what_there_is(machine: Any, there: dict[str, Any], device: str, message: str) -> None:
    machine(**there)
    with pytest.raises(RequestError, match=message):
        select_device(device)


@pytest.mark.parametrize("dtype", ["int8", "fp16", torch.int8, torch.float64])
def test_a_dtype_that_cannot_be_computed_with_is_refused(dtype: Any) -> None:
    with pytest.raises(RequestError, match="Available: float32, bfloat16, float16, half"):
        select_device("cpu", dtype)


def test_a_device_is_tried_before_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._problem(torch.device("cpu")) is None

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "zeros", fail)
    assert module._problem(torch.device("cpu")) == "CUDA error: no kernel image is available"
