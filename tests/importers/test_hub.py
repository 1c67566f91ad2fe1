"""Models of the hub: downloads, the cache offline, interrupted downloads."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from foreign import audiocraft_folder, musicgen_folder
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

import cadenza
from cadenza.core.errors import CheckpointError


class Hub:
    """Replacement of `snapshot_download`: repositories are folders, requested files are copied to a cache."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories, self.cache, self.requests = repositories, cache, []

    def __call__(self, name: str, *, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        self.requests.append((name, revision))
        folder = self.cache / name
        if name not in self.repositories:
            raise LocalEntryNotFoundError("Cannot reach the hub")
        for path in self.repositories[name].rglob("*"):
            file = path.relative_to(self.repositories[name])
            if path.is_file() and any(file.match(pattern) for pattern in allow_patterns or ["*"]):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / file)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub({}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_model_by_name(tmp_path: Path, hub: Hub) -> None:
    musicgen_folder(tmp_path / "a")
    (tmp_path / "a/pytorch_model.bin").write_bytes(b"a second copy of the weights")
    (tmp_path / "a/README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [x]\n---\n# M\n")
    hub.repositories["facebook/musicgen-tiny"] = tmp_path / "a"
    system = cadenza.load("facebook/musicgen-tiny@v2", device="cpu")
    assert hub.requests == [("facebook/musicgen-tiny", "v2")]
    assert system.card.name == "musicgen-tiny" and system.card.license == "CC-BY-NC-4.0"
    assert "CC-BY-NC-4.0" in system.card.notice and "facebook/musicgen-tiny" in system.card.notice
    assert system.generate("sad piano", seconds=0.1).wave.shape[-1] == 800
    assert not (hub.cache / "facebook/musicgen-tiny/pytorch_model.bin").exists(), "one copy of the weights is enough"


def test_pickles_are_downloaded_without_safetensors(tmp_path: Path, hub: Hub) -> None:
    audiocraft_folder(tmp_path / "a")
    hub.repositories["facebook/audiogen-tiny"] = tmp_path / "a"
    assert cadenza.load("facebook/audiogen-tiny", device="cpu").card.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize("shard", [2**24, 20_000])
def test_saved_system(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, shard: int) -> None:
    monkeypatch.setattr("cadenza.system.store.SHARD_BYTES", shard)
    musicgen_folder(tmp_path / "a")
    cadenza.load(tmp_path / "a", device="cpu").save(tmp_path / "ours")
    hub.repositories["me/mine"] = tmp_path / "ours"
    system = cadenza.load("me/mine", device="cpu")
    assert system.generate("sad piano", seconds=0.1).wave.shape[-1] == 800


def test_interrupted_download(tmp_path: Path, hub: Hub) -> None:
    musicgen_folder(tmp_path / "a")
    (tmp_path / "a/model.safetensors").rename(tmp_path / "weights")
    hub.repositories["facebook/musicgen-tiny"] = tmp_path / "a"
    with pytest.raises(CheckpointError, match="has no weights; the download was interrupted"):
        cadenza.load("facebook/musicgen-tiny")
    shutil.copy(tmp_path / "weights", tmp_path / "a/model.safetensors")
    cadenza.load("facebook/musicgen-tiny", device="cpu")


def test_offline_error_names_the_download_command(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as error:
        cadenza.load("facebook/musicgen-small")
    for word in ("is not on this machine", "hf download facebook/musicgen-small --local-dir musicgen-small", "by its path"):
        assert word in str(error.value)


def test_offline_by_the_setting_of_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real `snapshot_download`, which makes no request."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download facebook/musicgen-small"):
        cadenza.load("facebook/musicgen-small")


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise RepositoryNotFoundError("401: not found", response=Mock())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(CheckpointError, match="the hub has no model 'unknown/model'.*hf auth login"):
        cadenza.load("unknown/model")


def test_paths_are_not_names(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/best", "./a/b", "/no/such/folder", "a/b/c", "nothing"):
        with pytest.raises(CheckpointError, match="neither a folder nor a bundled model"):
            cadenza.load(name)
    with pytest.raises(CheckpointError, match="Use its name on the hub, 'facebook/musicgen-small'"):
        cadenza.load("musicgen-small")
    assert not hub.requests
