"""Detection of the library that wrote a folder; other folders and files are errors with a fix."""

import json
from pathlib import Path

import pytest
import torch
from foreign import audiocraft_folder, musicgen_folder

import cadenza
from cadenza.core.errors import CheckpointError
from cadenza.importers.license import model_card_for


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["checkpoint.th", ".hydra/config.yaml"], "training run of AudioCraft.*export_lm"),
        (["checkpoint_12.th"], "training run of AudioCraft"),
        (["checkpoint-5/config.json", "checkpoint-40/config.json"], "training run of transformers.*checkpoint-40'"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter.*merge"),
        (["last.ckpt"], "Lightning"),
        (["global_step10/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "DeepSpeed"),
        (["song.wav"], r"holds no known model \(song.wav\).*config.json.*state_dict.bin"),
        ([], "it is empty"),
    ],
)
def test_folders_without_a_model(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        touch(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        cadenza.load(tmp_path)


@pytest.mark.parametrize("kind", ["musicgen_melody_decoder", "dac", "t5", "llama", None])
def test_unsupported_models_of_transformers(tmp_path: Path, kind: str | None) -> None:
    touch(tmp_path / "config.json", json.dumps({"model_type": kind} if kind else {}))
    with pytest.raises(CheckpointError, match=f"of the type {kind!r}"):
        cadenza.load(tmp_path)


def test_damaged_config(tmp_path: Path) -> None:
    touch(tmp_path / "config.json", "{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        cadenza.load(tmp_path)
    touch(tmp_path / "config.json", "[]")
    with pytest.raises(CheckpointError, match="not a mapping"):
        cadenza.load(tmp_path)


def test_files_instead_of_folders(tmp_path: Path) -> None:
    for name, message in (
        ("checkpoint.th", "training run"),
        ("state_dict.bin", "give its folder"),
        ("x.wav", "give the folder of a model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            cadenza.load(touch(tmp_path / name))


def test_a_checkpoint_of_transformers_trainer_is_a_model(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    touch(tmp_path / "trainer_state.json", "{}")
    torch.save({}, tmp_path / "optimizer.pt")
    cadenza.load(tmp_path, device="cpu")


def test_a_repository_with_both_layouts(tmp_path: Path) -> None:
    """The layout of transformers is preferred, as it contains the text encoder."""
    audiocraft_folder(tmp_path)
    assert cadenza.load(tmp_path, device="cpu").spec.generator.attend_padding
    musicgen_folder(tmp_path)
    assert not cadenza.load(tmp_path, device="cpu").spec.generator.attend_padding


def test_git_lfs_pointers(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer.*git lfs pull"):
        cadenza.load(tmp_path)


@pytest.mark.parametrize(
    ("front", "name", "licence"),
    [
        ("license: cc-by-nc-4.0", "anything", "CC-BY-NC-4.0"),
        ("license: other\nlicense_name: stabilityai-community", "x", "stabilityai-community"),
        ("license: apache-2.0", "facebook/musicgen-small", "Apache-2.0"),
        ("tags: [a]", "facebook/musicgen-stereo-large", "CC-BY-NC-4.0"),
        (None, "facebook/encodec_24khz", "MIT"),
        (None, "audiogen-medium", "CC-BY-NC-4.0"),
        (None, "my-own", "unknown"),
        ("{", "my-own", "unknown"),
    ],
)
def test_licences(tmp_path: Path, front: str | None, name: str, licence: str) -> None:
    if front is not None:
        touch(tmp_path / "README.md", f"---\n{front}\n---\n# Text\n")
    card = model_card_for(tmp_path, name=name, summary="S")
    assert card.license == licence and name in card.notice
    assert licence in card.notice or "which has no licence" in card.notice
