"""Where the encoder of `t5` comes from: folders that are copied, what a hub keeps, and what may be wrong with either."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import TEXTS, model, part_of, run, theirs
from safetensors.torch import load_file, save_file
from tiny import TINY

from cadenza.conditioners.base import ConditionerSet, ConditionerSpec
from cadenza.conditioners.t5 import T5Spec
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "t5")


def test_a_folder_is_copied_beside_the_weights(tmp_path: Path, folder: Path) -> None:
    """The copy is a T5 that transformers reads too, and the saved spec names it wherever the system is moved."""
    parts = ConditionerSet({"the/prompt": part_of(folder)})
    expected = run(parts["the/prompt"], list(TEXTS)).embeddings  # type: ignore[arg-type]
    (tmp_path / "saved").mkdir()
    spec = parts.save_assets(tmp_path / "saved")["the/prompt"]
    assert isinstance(spec, T5Spec) and spec.model == "./conditioners/the%2Fprompt" and spec.dim == 16
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    folder.rename(tmp_path / "gone")
    found = ConditionerSpec.parse(json.loads(spec.to_json())).resolve_paths(moved)
    assert torch.equal(run(found.build(), list(TEXTS)).embeddings, expected)
    torch.testing.assert_close(theirs(Path(found.model), TEXTS[0]), theirs(tmp_path / "gone", TEXTS[0]))
    assert found.resolve_paths(tmp_path) == found, "only what was put there is looked for there"


def test_a_narrow_encoder_is_copied_as_it_is(tmp_path: Path) -> None:
    """With a quarter of the bytes; its weights in floating point are those that it computes with."""
    folder = model(tmp_path / "t5", d_model=128, d_kv=32, d_ff=256)
    part = part_of(folder, output_dim=128)
    part.pretrained.quantized = True
    expected = run(part, list(TEXTS)).embeddings
    spec = part.save_assets(tmp_path, "prompt")
    assert isinstance(spec, T5Spec)
    whole, copied = (path / "model.safetensors" for path in (folder, tmp_path / "prompt"))
    assert copied.stat().st_size < 0.3 * whole.stat().st_size
    other = spec.resolve_paths(tmp_path).build()
    assert other.pretrained.unloaded_bytes() == sum(
        x.nbytes for x in part.pretrained.get(torch.device("cpu")).state_dict().values()
    )
    assert torch.equal(run(other, list(TEXTS)).embeddings, expected)
    again = other.save_assets(tmp_path, "again")
    assert isinstance(again, T5Spec) and torch.equal(
        run(again.resolve_paths(tmp_path).build(), list(TEXTS)).embeddings, expected
    )
    dense, exact = other.pretrained.weights(), part.pretrained.weights()
    assert dense.keys() == exact.keys()
    for name, x in exact.items():
        assert (dense[name].float() - x).abs().max() <= x.abs().max() / 250, name
    with pytest.raises(CheckpointError, match="has weights in 8 bits, which cannot be trained"):
        spec.model_copy(update={"train": True}).resolve_paths(tmp_path).build()


def test_a_trained_encoder_leaves_its_weights_to_the_system(tmp_path: Path, folder: Path) -> None:
    part = part_of(folder, train=True)
    with torch.no_grad():
        part.encoder.final_layer_norm.weight.mul_(2.0)
    spec = part.save_assets(tmp_path, "prompt")
    assert not list(tmp_path.glob("prompt/*.safetensors"))
    other = spec.resolve_paths(tmp_path).build()
    other.load_state_dict(part.state_dict())
    assert torch.equal(run(other, list(TEXTS)).embeddings, run(part, list(TEXTS)).embeddings)
    with pytest.raises(CheckpointError, match="weights are in the checkpoint of its system. Set train: true"):
        run(spec.model_copy(update={"train": False}).resolve_paths(tmp_path).build(), ["drums"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client keeps on this machine; the hub itself cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny-t5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    model(repository / "snapshots" / ("0" * 40))
    model(repository / "snapshots" / ("1" * 40), seed=1)
    return repository


def test_a_repository_is_named_by_its_commit(hub: Path, tmp_path: Path) -> None:
    part = part_of("someone/tiny-t5")
    expected = run(part, list(TEXTS)).embeddings
    spec = part.save_assets(tmp_path / "saved", "prompt")
    assert isinstance(spec, T5Spec) and (spec.model, spec.revision) == ("someone/tiny-t5", "0" * 40)
    assert not (tmp_path / "saved").exists() and spec.resolve_paths(tmp_path / "saved") == spec
    (hub / "refs" / "main").write_text("1" * 40)
    assert torch.equal(run(spec.build(), list(TEXTS)).embeddings, expected)
    assert not torch.equal(run(part_of("someone/tiny-t5"), list(TEXTS)).embeddings, expected)
    kept = part_of("someone/tiny-t5", train=True).save_assets(tmp_path / "saved", "prompt")
    assert isinstance(kept, T5Spec) and kept.model == "./prompt", "what was trained needs no hub"


def test_what_is_not_here_says_what_to_download(hub: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        part_of("google-t5/t5-base", revision="a1b2")
    for part in (
        "'google-t5/t5-base'",
        "HF_HUB_OFFLINE is set",
        "hf download google-t5/t5-base --revision a1b2",
        str(hub.parent),
    ):
        assert part in str(error.value)
    part = part_of("google-t5/t5-base", dim=768)  # weights of the system can be looked at without it
    assert part.out.weight.shape == (16, 768)
    with pytest.raises(CheckpointError, match="hf download google-t5/t5-base"):
        part.prepare(["drums"])
    for other in ("./no-such-folder", "/no/such/folder", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"folder not found: '{other}'"):
            part_of(other)


class Trap:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def _break(folder: Path, how: str) -> None:
    weights = load_file(folder / "model.safetensors")
    first = next(iter(weights))
    texts = {
        "broken config": ("config.json", "{"),
        "broken tokenizer": ("tokenizer.json", "{}"),
        "another model": ("config.json", '{"model_type": "bert", "d_model": 16}'),
        "something more": ("config.json", '{"model_type": "musicgen", "text_encoder": {"model_type": "t5", "d_model": 16}}'),
    }
    other = {
        "one missing": {key: x for key, x in weights.items() if key != first},
        "one more": weights | {"encoder.more": torch.zeros(1)},
        "misshapen": weights | {first: torch.zeros(3)},
        "not finite": weights | {first: weights[first] * torch.inf},
    }
    without = {"no tokenizer": "tokenizer.json", "no config": "config.json", "no weights": "model.safetensors"}
    if how in texts:
        (folder / texts[how][0]).write_text(texts[how][1])
    elif how in other:
        save_file(other[how], folder / "model.safetensors")
    elif how in without:
        (folder / without[how]).unlink()
    elif how == "cut off":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    else:
        assert how == "code"
        (folder / "model.safetensors").unlink()
        torch.save({"encoder.x": Trap()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no tokenizer", "has no tokenizer.json or spiece.model, so it is not a T5 with its tokenizer"),
        ("no config", "has no config.json, so it is not a T5"),
        ("another model", "is not a T5 \\(model_type = 'bert'\\). Expected one of t5"),
        ("something more", "is not a T5 \\(model_type = 'musicgen'\\). Set subconfig: text_encoder"),
        ("no weights", "has no weights: model.safetensors or pytorch_model.bin is needed"),
        ("cut off", "model.safetensors is not a whole safetensors file .* copy it again"),
        ("one missing", "1 missing"),
        ("one more", "1 unknown: more"),
        ("misshapen", "1 misshapen"),
        ("not finite", "1 weight is not finite"),
        ("code", "pytorch_model.bin was not loaded: it is a pickle"),
        ("broken tokenizer", "tokenizer.json is not a tokenizer"),
        ("broken config", "config.json is not readable as JSON"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder: Path, capsys: Any, how: str, message: str) -> None:
    _break(folder, how)
    with pytest.raises(CheckpointError, match=message) as error:
        part_of(folder).prepare_training([])
    assert str(folder) in str(error.value) and "this must not run" not in capsys.readouterr().out


def test_what_is_wrong_with_a_request_is_said(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"a text is needed, got 7 \(int\)"):
        part_of(folder).prepare(["drums", 7])
    with pytest.raises(CheckpointError, match="has a width of 16, not 32; fix `dim`"):
        part_of(folder, dim=32).prepare(["drums"])


def test_an_encoder_that_is_read_in_no_time_is_not_held_between_requests(tmp_path: Path, folder: Path) -> None:
    prompt = {"type": "t5", "model": str(folder), "output_dim": 16, "null_embedding": "zeros"}
    spec = SystemSpec.parse(
        {**TINY, "conditioners": {"prompt": prompt}, "prompt_patterns": [], "fusion": {"cross": ["prompt"]}}
    )
    whole = System(spec).eval()
    first = whole.generate_frames("slow piano", seconds=0.1, seed=1).data
    assert whole.conditioners["prompt"].pretrained._network is not None  # as its weights are read whole
    whole.quantize("int8").save(tmp_path / "it")
    system = System.load(tmp_path / "it")
    encoder = system.conditioners["prompt"].pretrained
    made = [system.generate_frames("slow piano", seconds=0.1, seed=1).data for _ in range(2)]
    assert encoder._network is None and encoder.unloaded_bytes() > 0
    assert torch.equal(*made) and made[0].shape == first.shape
