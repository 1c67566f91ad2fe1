"""The codec task: its schedule, its exact resumption, and that it learns."""

import copy
import math

import pytest
import torch
from torch import Tensor

from cadenza.codecs.encodec import Encodec, EncodecSpec
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.training.tasks.base import StepContext, TaskSpec
from cadenza.training.tasks.codec import CodecTask, CodecTaskSpec, LatentPool

Losses = list[tuple[str, dict[str, float]]]


def tones(count: int, seed: int) -> dict[str, Audio]:
    """Random chords of three partials."""
    draw = torch.Generator().manual_seed(seed)
    hertz = 100.0 * 2.0 ** (4.0 * torch.rand(count, 3, 1, generator=draw))
    phase = torch.rand(count, 3, 1, generator=draw)
    t = torch.arange(2400) / 8000
    return {"audio": Audio((0.2 * torch.sin(2 * math.pi * (hertz * t + phase))).sum(1, keepdim=True), 8000)}


class Run:
    """A hand-written training loop over the task."""

    def __init__(self, **fields: object) -> None:
        torch.manual_seed(0)
        self.codec = Encodec(EncodecSpec.example())
        settings = {
            "unquantized_steps": 3,
            "kmeans_frames": 400,
            "mel": 1.0,
            "mel_windows": (128, 512),
            "discriminator_filters": 2,
        }
        self.task = CodecTask(CodecTaskSpec(**(settings | fields)), self.codec)  # type: ignore[arg-type]
        self.rng = torch.Generator().manual_seed(1)
        self.optimisers = {name: torch.optim.Adam(m.parameters(), 2e-3) for name, m in self.task.optimized_modules().items()}
        self.step = 0

    def go(self, steps: int) -> Losses:
        logged: Losses = []
        for _ in range(steps):
            for name, losses in self.task.step(tones(2, self.step), StepContext(self.step, 100, self.rng)):
                self.optimisers[name].zero_grad()
                losses["loss"].backward()
                self.optimisers[name].step()
                logged.append((name, {key: float(value.detach()) for key, value in losses.items()}))
            self.step += 1
        return logged

    def state(self) -> dict[str, dict]:
        groups = {name: module.state_dict() for name, module in self.task.optimized_modules().items()}
        return copy.deepcopy(groups | {"memory": self.task.extra_state().state_dict()})


def embeds(run: Run) -> Tensor:
    return torch.stack([level.embed for level in run.codec.quantizer.levels])  # type: ignore[misc]


def test_codebooks_wait_for_the_warm_start() -> None:
    run = Run()
    before = embeds(run).clone()
    logged = run.go(3)
    assert torch.equal(embeds(run), before)
    assert all("commitment" not in losses for _, losses in logged)
    assert run.task.epoch_metrics() == {}
    assert "commitment" in run.go(1)[0][1]
    assert not torch.equal(embeds(run), before)


def test_a_warm_codec_keeps_its_codebooks() -> None:
    run = Run(unquantized_steps=0)
    before = embeds(run).clone()
    run.go(1)
    drift = (embeds(run) - before).norm(dim=-1) / before.norm(dim=-1)
    assert float(drift.median()) < 0.2  # moved by one step of the running average, not recomputed


def test_resumed_run_equals_the_whole() -> None:
    """Through the warm start, k-means, the critic's entry and random levels."""
    for cut in (2, 3, 5):
        fields = {"adversarial": 1.0, "feature": 1.0, "discriminator_start_step": 4, "quantizer_dropout": 0.5}
        whole, first, second = Run(**fields), Run(**fields), Run(**fields)
        expected = whole.go(7)
        early = first.go(cut)
        state = first.state()
        for name, module in (second.task.optimized_modules() | {"memory": second.task.extra_state()}).items():
            module.load_state_dict(state[name])
        for name, optimiser in second.optimisers.items():
            optimiser.load_state_dict(copy.deepcopy(first.optimisers[name].state_dict()))
        second.rng.set_state(first.rng.get_state())
        second.step = cut
        assert early + second.go(7 - cut) == expected


def test_critic_comes_in_at_its_step_and_learns_alone() -> None:
    run = Run(adversarial=1.0, feature=1.0, discriminator_start_step=1, unquantized_steps=0)
    assert [name for name, _ in run.go(1)] == ["codec"]
    run.codec.zero_grad()
    steps = run.task.step(tones(2, 0), StepContext(1, 100, run.rng))
    name, losses = next(steps)
    losses["loss"].backward()
    assert name == "discriminator" and all(p.grad is None for p in run.codec.parameters())
    assert {"scale0", "scale4"} <= losses.keys()
    for parameter in run.task.optimized_modules()["discriminator"].parameters():
        parameter.grad = None
    name, losses = next(steps)
    losses["loss"].backward()
    assert name == "codec" and all(p.grad is None for p in run.task.optimized_modules()["discriminator"].parameters())
    assert all(p.requires_grad for p in run.task.optimized_modules()["discriminator"].parameters())
    assert {"adversarial", "feature", "share_feature"} <= losses.keys()


@pytest.mark.parametrize(("fields", "groups"), [({}, ["codec"]), ({"feature": 1.0}, ["codec", "discriminator"])])
def test_groups(fields: dict[str, float], groups: list[str]) -> None:
    assert list(Run(**fields).task.optimized_modules()) == groups


def test_it_learns_to_reconstruct_through_used_codes() -> None:
    run = Run(unquantized_steps=60, l1=1.0)
    first = run.task.validate(tones(16, 999))
    run.go(150)
    last = run.task.validate(tones(16, 999))
    assert float(last["mel"]) < 0.5 * float(first["mel"])
    assert float(last["si_sdr"]) > float(first["si_sdr"]) + 5.0
    report = run.task.epoch_metrics()
    for k in range(2):
        assert float(report[f"codebook{k}/used"]) > 0.8
        assert 6.0 < float(report[f"codebook{k}/perplexity"]) <= 16.0


def test_training_the_decoder_leaves_the_codes() -> None:
    run = Run(train="decoder", unquantized_steps=0)
    audio = tones(2, 5)["audio"]
    codes, decoded = run.codec.encode(audio), run.codec.decode(run.codec.encode(audio))
    run.go(3)
    assert torch.equal(run.codec.encode(audio).ids, codes.ids)
    assert (run.codec.decode(codes).wave - decoded.wave).abs().max() > 1e-3
    with pytest.raises(ValueError, match="unquantized_steps"):
        CodecTaskSpec(train="decoder")


def test_report_counts_what_was_used() -> None:
    run = Run(unquantized_steps=0)
    run.task.validate(tones(2, 5))
    ids = run.codec.encode(tones(2, 5)["audio"]).ids
    report = run.task.epoch_metrics()
    for k in range(2):
        shares = torch.bincount(ids[:, k].flatten(), minlength=16) / ids[:, k].numel()
        assert float(report[f"codebook{k}/used"]) == float((shares > 0).double().mean())
        entropy = -sum(float(p) * math.log(float(p)) for p in shares if p > 0)
        assert math.isclose(float(report[f"codebook{k}/perplexity"]), math.exp(entropy), rel_tol=1e-4)
    assert run.task.epoch_metrics() == {}


def test_pool_keeps_the_latest() -> None:
    pool = LatentPool(5, 1)
    for start in range(0, 8, 2):
        pool.add(torch.arange(start, start + 2.0)[:, None])
        assert sorted(pool.filled().flatten().tolist()) == list(range(max(0, start + 2 - 5), start + 2))
    pool.add(torch.arange(100.0, 112.0)[:, None])
    assert sorted(pool.filled().flatten().tolist()) == list(range(107, 112))


def test_samples_keep_the_lengths() -> None:
    batch = {"audio": Audio(torch.randn(2, 1, 900), 8000, torch.tensor([900, 500]))}
    samples = Run().task.sample_audio(batch)
    assert [len(clip.wave[0, 0]) for clip in samples["reconstruction"]] == [900, 500]


def test_it_is_filed_as_codec() -> None:
    spec = TaskSpec.parse({"type": "codec", "unquantized_steps": 7})
    assert isinstance(spec, CodecTaskSpec)
    assert isinstance(run := Run().codec.encode(tones(1, 0)["audio"]), Codes) and run.lengths.tolist() == [75]
