"""The report on systems of known adherence: one that follows all controls, none, or half of the requests."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny import tiny_system

from cadenza.core.errors import DataError, RequestError
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.evaluation import codec_quality, report
from cadenza.evaluation.estimators import Estimate
from cadenza.evaluation.labels import key_class
from cadenza.evaluation.report import ClipGenerator
from cadenza.evaluation.settings import ControlSetting
from cadenza.evaluation.targets import AttributeTargets, handwritten_prompts
from cadenza.system.system import System

FAMILIES = ("piano", "mallets", "organ", "guitar", "bass", "strings", "brass", "reed", "flute", "synth", "drums")
KEYS = ("C major", "A minor", "F# major", "D minor", "Bb major", "G minor")
INSTRUMENTS = {"piano": "piano", "strings": "violin", "flute": "flute", "reed": "oboe"}
RATE = 8000


def wave(truth: dict[str, Any], seconds: float = 0.5) -> torch.Tensor:
    """A clip that says what it is in its first samples, for `Oracle` to read."""
    made = torch.zeros(round(seconds * RATE))
    made[:2] = torch.tensor([truth["tempo"] / 1000, key_class(truth["key"]) / 100])
    made[2 : 2 + len(FAMILIES)] = torch.tensor([0.5 * (name in truth["families"]) for name in FAMILIES])
    made[20:] = 0.1 * torch.sin(torch.arange(len(made) - 20) * 0.3)
    return made


@dataclass
class Oracle:
    """Estimators that read what `wave` wrote."""

    families: tuple[str, ...] = FAMILIES
    sha256: str = "0" * 64

    def __call__(self, audio: Audio) -> list[Estimate]:
        none = torch.zeros(12, dtype=torch.long)
        return [
            Estimate(
                float(w[0]) * 1000, round(float(w[1]) * 100), w[2 : 2 + len(FAMILIES)] + 0.1, 0, none, none,
                seconds=len(w) / RATE,
            )
            for w in audio.wave[:, 0]
        ]  # fmt: skip


@dataclass
class Player:
    """The part of a system that an evaluation uses; follows a share of its requests."""

    truths: dict[str, dict[str, Any]]  # by caption
    obeys: float = 1.0
    conditioners: tuple[str, ...] = ("prompt", "tempo", "key")
    made: list[dict[str, Any]] = field(default_factory=list)
    generator: Any = 1
    device: str = "cpu"
    card: Any = field(default_factory=lambda: SimpleNamespace(name="player"))
    codec: Any = field(
        default_factory=lambda: SimpleNamespace(
            frame_format=SimpleNamespace(frame_rate=50.0, cardinality=4),
            spec=SimpleNamespace(sample_rate=RATE, channels=1),
            encode=lambda audio: audio,
            decode=lambda audio: audio,
        )
    )

    @property
    def spec(self) -> Any:
        defaults, generator = SimpleNamespace(guidance=3.0), SimpleNamespace(max_frames=500)
        return SimpleNamespace(
            defaults=defaults, generator=generator, prompt_patterns=(), to_json=lambda: f"player {self.obeys}"
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor(1.0)}

    def generate(self, items: list[dict[str, Any]], *, seconds: list[float], seed: list[int], guidance: float | None) -> Audio:
        assert len(items) == len(seconds) == len(seed)
        self.made += items
        clips = []
        for item, long, one in zip(items, seconds, seed, strict=True):
            chance = random.Random(f"{one} {sorted(item)}")
            played = anything(chance)
            if chance.random() < self.obeys:
                played |= self.truths.get(item.get("prompt", ""), {})
                played |= {name: item[name] for name in ("tempo", "key") if name in item}
            clips.append(Audio(wave(played, long)[None, None], RATE))
        return Audio.pad_and_stack(clips)


def anything(chance: random.Random) -> dict[str, Any]:
    lead = chance.choice(list(INSTRUMENTS))
    return {"tempo": float(chance.randrange(55, 180)), "key": chance.choice(KEYS), "families": [lead], "lead_family": lead}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty clips with truths and captions, without a synthesizer."""
    folder = tmp_path / "held-out"
    folder.mkdir()
    for i in range(40):
        truth = anything(random.Random(i))
        name = INSTRUMENTS[truth["lead_family"]]
        text = f"{name} number {i} in {truth['key']}, {truth['tempo']:.0f} bpm"
        record = {
            **truth, "seconds": 0.5, "prompt": [text], "prompt_mentions": [["players", "key", "bpm"]],
            "instruments": [{"role": "melody", "name": name, "family": truth["lead_family"]}],
        }  # fmt: skip
        Audio(wave(truth)[None, None], RATE).save(folder / f"{i:03d}.wav")
        (folder / f"{i:03d}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (report, codec_quality):
        monkeypatch.setattr(module, "load_estimators", Oracle)


def player(corpus: Path, **fields: Any) -> Player:
    records = [json.loads(path.read_text()) for path in sorted(corpus.glob("*.json"))]
    said = {r["prompt"][0]: {k: r[k] for k in ("tempo", "key", "families")} for r in records}
    by_hand = {e["prompt"]: {k: e[k] for k in ("tempo", "key", "families") if k in e} for e in handwritten_prompts()}
    return Player({**said, **by_hand}, **fields)


def measured(system: Player, corpus: Path, out: Path, **fields: Any) -> report.EvaluationReport:
    scope = report.EvaluationScope(**{name: fields.pop(name) for name in ("clips", "seeds", "settings") if name in fields})
    return report.evaluate(cast(System, system), corpus, out=out, scope=scope, **fields)


def test_a_system_that_follows_its_controls_has_adherence_one(corpus, tmp_path):
    found = measured(player(corpus), corpus, tmp_path / "out", clips=15, seeds=(0, 1))
    alone, without = {"nothing", "text", "tempo", "key"}, {"all-but-text", "all-but-tempo", "all-but-key"}
    assert found.clips == 15 and set(found.scores) == alone | without | {"handwritten", "all"}
    for setting, attributes in {"tempo": ["tempo"], "key": ["key"]}.items():
        assert set(found.scores[setting]) == {*attributes, "duration"}
    for setting in ("text", "all-but-text", "all", "handwritten"):
        for attribute in ("tempo", "key"):
            one = found.scores[setting][attribute]
            assert one.adherence.value.value == pytest.approx(1), (setting, attribute)
    assert found.scores["text"]["family"].adherence.value.value == pytest.approx(1)
    assert found.scores["text"]["tempo"].asked == 15 and found.scores["handwritten"]["tempo"].asked < 60
    effect = found.scores["key"]["key"].effect
    assert effect is not None and effect.low > 0.5  # six keys: without the control one in six is right by chance
    with_text = found.scores["all"]["key"].effect
    assert with_text is not None and with_text.value == 0  # the text contains it
    assert set(found.changes) == {"prompt", "tempo", "key"} and set(found.changes["key"]) == {"tempo", "family"}
    assert found.changes["key"]["tempo"].value == 0
    assert set(found.off.values()) == {0.0}


def test_a_system_that_ignores_its_controls_has_adherence_zero(corpus, tmp_path):
    found = measured(player(corpus, obeys=0.0), corpus, tmp_path / "out", clips=40)
    for setting in ("text", "tempo", "key", "all-but-text", "all", "handwritten"):
        for attribute, one in found.scores[setting].items():
            if attribute in {"pace", "duration"}:
                continue  # no caption of this corpus says the pace, so its ceiling is unknown; all clips have one length
            assert abs(one.adherence.value.value) < 0.35, (setting, attribute)  # three standard errors of 40 clips
            assert one.effect is None or abs(one.effect.value) < 0.35, (setting, attribute)


def test_a_system_that_follows_half_of_the_requests_lies_between(corpus, tmp_path):
    found = measured(player(corpus, obeys=0.5, conditioners=("tempo",)), corpus, tmp_path / "out", clips=40, seeds=(0, 1))
    a = found.scores["tempo"]["tempo"].adherence.value
    assert a.low < 0.5 < a.high and a.high - a.low < 0.5


def test_cached_clips_are_not_generated_again_and_files_are_complete(corpus, tmp_path):
    system, lines = player(corpus), []
    first = measured(system, corpus, tmp_path / "out", clips=10, progress=lines.append)
    made = len(system.made)
    again = measured(system, corpus, tmp_path / "out", clips=10)
    per_speed = 2 * (1 + 1) + 7  # two timings, each with one clip to warm up, alone and with eight
    assert len(system.made) - made == per_speed
    assert repr(again.scores) == repr(first.scores)
    assert any("text, seed 0: 10 of 10" in line for line in lines)
    data = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert data["scores"]["text"]["tempo"]["adherence"]["value"]["value"] == 1
    assert "own effect" in (tmp_path / "out" / "report.md").read_text()
    for name in ("adherence.png", "clips.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_another_system_does_not_use_the_cached_clips(corpus, tmp_path):
    measured(player(corpus, conditioners=("tempo",)), corpus, tmp_path / "out", clips=5)
    deaf = player(corpus, obeys=0.0, conditioners=("tempo",))
    assert measured(deaf, corpus, tmp_path / "out", clips=5).scores["tempo"]["tempo"].adherence.score.value < 0.5
    assert len(deaf.made) >= 10


def test_only_existing_controls_are_measured(corpus, tmp_path):
    found = measured(player(corpus, conditioners=("key",)), corpus, tmp_path / "out", clips=10)
    assert set(found.scores) == {"nothing", "key"} and set(found.scores["key"]) == {"key", "duration"}
    with pytest.raises(RequestError, match="drums"):
        measured(player(corpus, conditioners=("drums",)), corpus, tmp_path / "out", clips=10)


def test_only_the_requested_settings_are_generated(corpus, tmp_path):
    system = player(corpus)
    found = measured(system, corpus, tmp_path / "out", clips=5, settings=("alone", "all"))
    assert list(found.scores) == ["nothing", "text", "tempo", "key", "all"]
    assert found.scores["all"]["key"].effect is None, "there is not another setting to compare with"
    with pytest.raises(RequestError, match="Did you mean 'tempo'"):
        measured(system, corpus, tmp_path / "out", clips=5, settings=("temp",))


def test_the_text_conditioner_alone_is_measured_without_extraction(tmp_path):
    """With extraction, the prompt's tempo is a value too; without it, only text."""
    maker = ClipGenerator(tiny_system(), tmp_path)
    prompt, values = {"prompt": "slow 90 bpm"}, {"prompt": "slow 90 bpm", "tempo": 90.0}
    clips = {
        name: maker.generate_cached(ControlSetting(name, [item], [AttributeTargets()], [0.5], extracts_values=extracts), 0)[
            0
        ].wave
        for name, item, extracts in (("extracted", prompt, True), ("text", prompt, False), ("values", values, False))
    }
    assert torch.equal(clips["extracted"], clips["values"]) and not torch.equal(clips["extracted"], clips["text"])
    assert maker.system.spec.prompt_patterns, "the system itself still reads"


def test_planted_copies_are_in_the_report(corpus, tmp_path):
    found = measured(player(corpus, conditioners=("key",)), corpus, tmp_path / "out", clips=4, training=corpus)
    assert found.copies is not None and found.copies.training_clips == 40


def test_data_without_labels_is_an_error(tmp_path):
    Audio(torch.zeros(1, 1, RATE), RATE).save(tmp_path / "a.wav")
    with pytest.raises(DataError, match="sidecar"):
        measured(Player({}), tmp_path, tmp_path / "out")
    with pytest.raises(RequestError, match="codec without a generator"):
        measured(Player({}, generator=None), tmp_path, tmp_path / "out")


def test_a_perfect_codec_retains_all_scores(corpus, tmp_path):
    system = player(corpus)
    found = codec_quality.evaluate_codec(cast(System, system), corpus, out=tmp_path / "codec", clips=20)
    assert found.retained["tempo"] == found.retained["key"] == found.retained["family"] == 1
    assert found.mel == 0 and found.si_sdr > 60
    assert sum(family.clips for family in found.families.values()) == 20
    assert json.loads((tmp_path / "codec" / "codec.json").read_text())["clips"] == 20


def test_codebook_use_and_perplexity_by_hand(corpus):
    ids = torch.tensor([[[0, 1, 2, 3], [0, 0, 0, 0]]])
    system = player(corpus)
    system.codec.encode = lambda audio: Codes(ids)
    system.codec.decode = lambda codes: Audio(torch.zeros(1, 1, RATE), RATE)
    found = codec_quality.evaluate_codec(cast(System, system), corpus, clips=5)
    assert found.use == [1.0, 0.25]
    assert found.perplexity == pytest.approx([4.0, 1.0])
    assert not found.passed["use"] and not found.passed["tempo"]
