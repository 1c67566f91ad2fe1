"""The generator task: what dropout draws, what it feeds the generator, and what validation says."""

import math
from typing import Any

import pytest
import torch

from cadenza.core.errors import TrainingError
from cadenza.core.types import Codes
from cadenza.data.loader import collate
from cadenza.dsp.audio import Audio
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System
from cadenza.training.tasks.base import StepContext
from cadenza.training.tasks.generator import GeneratorTask, GeneratorTaskSpec

SPEC = SystemSpec.parse(
    {
        "codec": {
            "type": "encodec", "sample_rate": 800, "strides": [4, 2], "codebooks": 2, "bins": 8, "filters": 2, "dimension": 4
        },
        "conditioners": {
            "tempo": {"type": "number", "output_dim": 8, "min": 40, "max": 200, "bands": 2},
            "key": {"type": "category", "output_dim": 8, "values": ["C", "D"]},
        },
        "fusion": {"cross": ["tempo", "key"], "prepend": ["key"]},
        "generator": {"type": "codec_lm", "width": 16, "depth": 1, "heads": 1, "max_frames": 40, "dropout": 0.0},
    }
)  # fmt: skip
ITEMS = [{"id": "a", "tempo": 90, "key": "C"}, {"id": "b", "tempo": None, "key": "D"}, {"id": "c", "tempo": 120, "key": "C"}]


@pytest.fixture(scope="module")
def system() -> System:
    torch.manual_seed(0)
    system = System(SPEC)
    for p in system.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return system


def batch(system: System, items: list[dict[str, Any]] = ITEMS, **times: float) -> Any:
    ids = torch.randint(0, 8, (3, 2, 20), generator=torch.Generator().manual_seed(1))
    lengths = [20, 13, 20]
    rows = [{**x, **times, "codes": Codes(ids[i : i + 1], torch.tensor([lengths[i]]))} for i, x in enumerate(items)]
    return collate(rows, system.conditioners.prepare)


def progress(seed: int = 0) -> StepContext:
    return StepContext(0, 10, torch.Generator().manual_seed(seed))


def test_dropout_is_per_item_and_id_and_guidance_takes_all_together(system: System) -> None:
    task = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.2, attribute_dropout={"tempo": 0.3}), system)
    keep = task._dropout_masks(20_000, torch.Generator().manual_seed(0))
    assert set(keep) == {("cross", "tempo"), ("cross", "key"), ("prepend", "key")}
    tempo, key = keep["cross", "tempo"], keep["cross", "key"]
    assert torch.equal(key, keep["prepend", "key"])  # an id is absent everywhere or nowhere
    assert key.float().mean() == pytest.approx(0.8, abs=0.01)
    assert tempo.float().mean() == pytest.approx(0.8 * 0.7, abs=0.01)
    assert not bool((tempo & ~key).any())  # without the key there is nothing
    both = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.0, attribute_dropout=0.4), system)._dropout_masks(
        20_000, progress().rng
    )
    alone = both["cross", "tempo"] & ~both["cross", "key"]
    assert alone.float().mean() == pytest.approx(0.6 * 0.4, abs=0.01)


def test_ids_can_be_dropped_together_and_what_is_not_guided_stays(system: System) -> None:
    """One draw for a group and one for each id; cfg dropout keeps conditions that are not guided."""
    chances = {"tempo": 0.2, "tempo+key": 0.5}
    keep = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.0, attribute_dropout=chances), system)._dropout_masks(
        20_000, progress().rng
    )
    tempo, key = keep["cross", "tempo"], keep["cross", "key"]
    assert key.float().mean() == pytest.approx(0.5, abs=0.015)
    assert tempo.float().mean() == pytest.approx(0.5 * 0.8, abs=0.015) and not bool((tempo & ~key).any())
    tree = SPEC.to_dict()
    tree["fusion"] = {"cross": ["tempo", {"id": "key", "guided": False}]}
    free = System(SystemSpec.parse(tree))
    keep = GeneratorTask(GeneratorTaskSpec(cfg_dropout=1.0, attribute_dropout=0.0), free)._dropout_masks(10, progress().rng)
    assert not keep["cross", "tempo"].any() and keep["cross", "key"].all()


def test_a_dropped_value_is_an_absent_value(system: System) -> None:
    system.eval()
    everything = GeneratorTask(GeneratorTaskSpec(cfg_dropout=1.0), system)
    nothing = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.0, attribute_dropout=0.0), system)
    bare = [{"id": item["id"]} for item in ITEMS]
    dropped = dict(everything.step(batch(system), progress()))["generator"]["loss"]
    absent = dict(nothing.step(batch(system, bare), progress()))["generator"]["loss"]
    told = dict(nothing.step(batch(system), progress()))["generator"]["loss"]
    torch.testing.assert_close(dropped, absent)
    assert abs(float(told.detach() - absent.detach())) > 1e-3
    judged = nothing.validate(batch(system))
    torch.testing.assert_close(judged["unconditioned"], absent.detach())
    torch.testing.assert_close(judged["loss"], told.detach())


def test_a_step_sees_what_conditioners_vary_and_validation_does_not(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    task = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.0, attribute_dropout=0.0), system)
    system.eval()
    step, judged = dict(task.step(batch(system), progress())), task.validate(batch(system))
    other = batch(system, [{**item, "tempo": 200} for item in ITEMS]).prepared["tempo"]
    draws = []
    monkeypatch.setattr(
        system.conditioners["tempo"], "augment", lambda _, rng: draws.append(torch.rand(1, generator=rng)) or other
    )
    varied = dict(task.step(batch(system), progress()))
    assert (varied["generator"]["loss"] - step["generator"]["loss"]).abs().item() > 1e-4
    torch.testing.assert_close(task.validate(batch(system)), judged)
    assert len(draws) == 1


def test_the_loss_reaches_conditioners_and_not_the_codec(system: System) -> None:
    task = GeneratorTask(GeneratorTaskSpec(), system)
    (_, losses), *_ = task.step(batch(system), progress())
    system.zero_grad()
    losses["loss"].backward()
    assert all(p.grad is None for p in system.codec.parameters())
    assert all(p.grad is not None for p in system.conditioners.parameters())
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    assert float(losses["loss"].detach()) == pytest.approx(math.log(8), abs=2.0)


def test_audio_is_encoded_as_the_codec_would(system: System) -> None:
    task = GeneratorTask(GeneratorTaskSpec(), system)
    wave = 0.2 * torch.randn(3, 1, 160, generator=torch.Generator().manual_seed(2))
    audio = Audio(wave, 800, torch.tensor([160, 104, 160]))
    codes = system.codec.encode(audio)
    assert isinstance(codes, Codes)
    clips = [{**item, "audio": clip} for item, clip in zip(ITEMS, audio, strict=True)]
    coded = [{**item, "codes": clip} for item, clip in zip(ITEMS, codes, strict=True)]
    losses = [task.validate(collate(rows, system.conditioners.prepare))["loss"] for rows in (clips, coded)]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_segment_that_reaches_the_end_of_its_piece_says_so(system: System) -> None:
    task = GeneratorTask(GeneratorTaskSpec(), system)
    rate = SPEC.codec.frame_format.frame_rate

    def ended(**times: float) -> list[bool]:
        return task._target(batch(system, **times)).ended.tolist()  # type: ignore[union-attr]

    assert ended(seconds_start=3.0, seconds_total=3.0 + 20 / rate) == [True, False, True]
    assert ended(seconds_start=3.0, seconds_total=3.0 + 13 / rate) == [True, True, True]
    assert ended(seconds_start=3.0, seconds_total=3.0 + 21 / rate) == [False, False, False]
    assert ended() == [False, False, False]


def test_samples_follow_the_metadata_of_the_items(system: System) -> None:
    task = GeneratorTask(GeneratorTaskSpec(), system.eval())
    heard = task.sample_audio(batch(system))
    items = [{"tempo": 90, "key": "C"}, {"key": "D"}, {"tempo": 120, "key": "C"}]
    expected = system.generate(items, seconds=20 / SPEC.codec.frame_format.frame_rate, seed=0)
    torch.testing.assert_close(heard["generated"].wave, expected.wave)
    assert heard["reference"].lengths.tolist() == [160, 104, 160]


def test_a_misfit_is_named(system: System) -> None:
    with pytest.raises(TrainingError, match=r"attribute_dropout names \['tmpo'\], but the conditioners are: tempo, key"):
        GeneratorTask(GeneratorTaskSpec(attribute_dropout={"tmpo": 0.1}), system)
    with pytest.raises(TrainingError, match="only a codec"):
        GeneratorTask(GeneratorTaskSpec(), System(SystemSpec.parse({"codec": SPEC.codec.to_dict()})))
