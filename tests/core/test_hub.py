"""Files of models in folders and in the hub's cache; what conditioners make of them is tested with them."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from cadenza.core.checkpoint import check_finite, check_state_dict
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import ModelSource


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path


def test_without_a_network_nobody_waits(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"no network \(Name or service not known\).*hf download someone/model --include"):
        ModelSource("someone/model").optional_file("config.json")
    assert time.monotonic() - start < 5


def answer(kind: type[Exception]) -> Any:
    def download(*_: Any, **__: Any) -> None:
        error = kind.__new__(kind, "404 Client Error.\nmore lines")
        error.args = ("404 Client Error.\nmore lines",)
        raise error

    return download


def test_what_the_hub_says_is_passed_on(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer(errors.RepositoryNotFoundError))
    with pytest.raises(CheckpointError, match="'someone/model'.*RepositoryNotFoundError: 404 Client Error"):
        ModelSource("someone/model").optional_file("config.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer(errors.RemoteEntryNotFoundError))
    assert ModelSource("someone/model").optional_file("config.json") is None
    with pytest.raises(CheckpointError, match="'someone/model' has no a or b, so it is not a part"):
        ModelSource("someone/model").required_file("a", "b", of="a part")


def test_what_is_downloaded_is_not_asked_for_again(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub / "models--someone--model" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer(RuntimeError))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    source = ModelSource("someone/model")
    assert source.optional_file("config.json") == folder / "config.json" and source.resolved_revision == "a" * 40
    assert (
        ModelSource("someone/other").resolved_revision is None and ModelSource("someone/other", "v1").resolved_revision == "v1"
    )


def test_only_the_shards_that_hold_something_wanted_are_read(tmp_path: Path) -> None:
    save_file({"a.x": torch.ones(1)}, tmp_path / "1.safetensors")
    shards = {"a.x": "1.safetensors", "b.x": "missing.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    source = ModelSource(str(tmp_path))
    assert source.load_state_dict(("a.",)).keys() == {"a.x"}
    with pytest.raises(CheckpointError, match="has 1 of 2 weight files; copy missing.safetensors"):
        source.load_state_dict(("a.", "b."))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="config.json is not a mapping"):
        source.read_json("config.json")


def test_weights_must_be_those_that_are_wanted() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(1, dtype=torch.long)}
    check_state_dict({"a": torch.ones(2), "b": torch.ones(1, dtype=torch.long)}, wanted, "it")
    with pytest.raises(
        CheckpointError, match=r"it: .*1 missing: b; 1 unknown: c; 1 misshapen: a is \[3\] instead of \[2\]; take both"
    ):
        check_state_dict({"a": torch.ones(3), "c": torch.ones(1)}, wanted, "it")
    with pytest.raises(CheckpointError, match=r"1 weight is not finite \(NaN or infinite\): a"):
        check_finite({"a": torch.tensor([0.0, torch.nan]), "b": wanted["b"]}, source="it")
