"""Models of the hub: downloaded whole, found again offline, never taken half."""

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
    """Stands in for `snapshot_download`: repositories are folders, and what was asked for comes into a cache."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories, self.cache, self.asked = repositories, cache, []

    def __call__(self, name: str, *, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        self.asked.append((name, revision))
        folder = self.cache / name
        if name not in self.repositories:
            raise LocalEntryNotFoundError("Cannot reach the hub")
        for path in self.repositories[name].rglob("*"):
            there = path.relative_to(self.repositories[name])
            if path.is_file() and any(there.match(pattern) for pattern in allow_patterns or ["*"]):
                (folder / there).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / there)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub({}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", there)
    return there


def test_a_model_by_its_name(tmp_path: Path, hub: Hub) -> None:
    musicgen_folder(tmp_path / "a")
    (tmp_path / "a/pytorch_model.bin").write_bytes(b"the same again, in another form")
    (tmp_path / "a/README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [x]\n---\n# M\n")
    hub.repositories["facebook/musicgen-tiny"] = tmp_path / "a"
    system = cadenza.load("facebook/musicgen-tiny@v2", device="cpu")
    assert hub.asked == [("facebook/musicgen-tiny", "v2")]
    assert system.card.name == "musicgen-tiny" and system.card.license == "CC-BY-NC-4.0"
    assert "CC-BY-NC-4.0" in system.card.notice and "facebook/musicgen-tiny" in system.card.notice
    assert system.generate("sad piano", seconds=0.1).wave.shape[-1] == 800
    assert not (hub.cache / "facebook/musicgen-tiny/pytorch_model.bin").exists(), "one form of the weights is enough"


def test_pickles_are_fetched_where_there_is_nothing_else(tmp_path: Path, hub: Hub) -> None:
    audiocraft_folder(tmp_path / "a")
    hub.repositories["facebook/audiogen-tiny"] = tmp_path / "a"
    assert cadenza.load("facebook/audiogen-tiny", device="cpu").card.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize("shard", [2**24, 20_000])
def test_one_of_ours(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, shard: int) -> None:
    monkeypatch.setattr("cadenza.system.store.SHARD_BYTES", shard)
    musicgen_folder(tmp_path / "a")
    cadenza.load(tmp_path / "a", device="cpu").save(tmp_path / "ours")
    hub.repositories["me/mine"] = tmp_path / "ours"
    system = cadenza.load("me/mine", device="cpu")
    assert system.generate("sad piano", seconds=0.1).wave.shape[-1] == 800


def test_a_download_that_was_broken_off_is_not_a_model(tmp_path: Path, hub: Hub) -> None:
    musicgen_folder(tmp_path / "a")
    (tmp_path / "a/model.safetensors").rename(tmp_path / "weights")
    hub.repositories["facebook/musicgen-tiny"] = tmp_path / "a"
    with pytest.raises(CheckpointError, match="has no weights; the download was interrupted"):
        cadenza.load("facebook/musicgen-tiny")
    shutil.copy(tmp_path / "weights", tmp_path / "a/model.safetensors")
    cadenza.load("facebook/musicgen-tiny", device="cpu")


def test_offline_what_to_do_is_said(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as error:
        cadenza.load("facebook/musicgen-small")
    for word in ("is not on this machine", "hf download facebook/musicgen-small --local-dir musicgen-small", "by its path"):
        assert word in str(error.value)


def test_offline_by_the_hubs_own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function, which asks nobody."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download facebook/musicgen-small"):
        cadenza.load("facebook/musicgen-small")


def test_a_name_that_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise RepositoryNotFoundError("401: not found", response=Mock())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(CheckpointError, match="the hub has no model 'nobody/nothing'.*hf auth login"):
        cadenza.load("nobody/nothing")


def test_paths_are_not_names(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/best", "./a/b", "/no/such/folder", "a/b/c", "nothing"):
        with pytest.raises(CheckpointError, match="neither a folder nor a bundled model"):
            cadenza.load(name)
    with pytest.raises(CheckpointError, match="Use its name on the hub, 'facebook/musicgen-small'"):
        cadenza.load("musicgen-small")
    assert not hub.asked
