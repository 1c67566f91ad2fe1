"""The loop against hand-written torch, and the promises that do not need a second process."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from training_toys import GanTask, Net, Order, Points, ToyBatches, codec_losses, collate, config, critic_losses, train

from cadenza.core.errors import SpecError, TrainingError
from cadenza.training.distributed import DistributedContext
from cadenza.training.loop import TrainingData, TrainingLoop


def lines(folder: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == kind]
    assert steps == sorted(set(steps)), "a step is there twice"
    return {r["step"]: {k: v for k, v in r.items() if k not in ("time", "kind")} for r in records if r["kind"] == kind}


def by_hand(net: Net, steps: int, accumulation: int) -> list[float]:
    """Two optimisers stepped together after every `accumulation` micro-batches: the loop in plain torch."""
    net.codec[2].p = 0.0  # type: ignore[union-attr,assignment]
    sides = (net.codec, net.discriminator)
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in side.parameters() if p.ndim == 2 and min(p.shape) > 1], "weight_decay": 0.01},
                {"params": [p for p in side.parameters() if p.ndim == 1 or min(p.shape) == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95), foreach=False,
        )
        for side in sides
    ]  # fmt: skip
    batches = iter(Order(50, 4))
    losses = []
    for step in range(steps):
        warm = (step + 1) / 5 if step < 5 else 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 5) / (steps - 5))) / 2
        gradients = [[torch.zeros_like(p) for p in side.parameters()] for side in sides]
        total = 0.0
        for _ in range(accumulation):
            x = torch.stack([Points()[i]["x"] for i in next(batches)])
            y = net.codec(x)
            for side, sums, terms in zip(sides, gradients, (codec_losses(net, x, y), critic_losses(net, x, y)), strict=True):
                found = torch.autograd.grad(terms["loss"], list(side.parameters()), retain_graph=True)
                for i, part in enumerate(found):
                    sums[i] += part / accumulation
            total += float(codec_losses(net, x, y)["loss"].detach()) / accumulation
        losses.append(total)
        for side, sums, optimizer in zip(sides, gradients, optimizers, strict=True):
            norm = math.sqrt(sum(float(g.detach().pow(2).sum()) for g in sums))
            for p, g in zip(side.parameters(), sums, strict=True):
                p.grad = g * min(1.0, 1.0 / (norm + 1e-6))
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * warm
            optimizer.step()
    return losses


def test_two_groups_under_accumulation_equal_plain_torch(tmp_path: Path) -> None:
    net = Net()
    expected = by_hand(net, steps=20, accumulation=3)
    _, ours = train(tmp_path, task={"type": "toy", "noisy": False}, steps=20)
    found = [record["codec/loss"] for record in lines(tmp_path).values()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(ours.named_parameters()), dict(net.named_parameters()), rtol=1e-4, atol=1e-5)


def test_accumulating_is_a_larger_batch(tmp_path: Path) -> None:
    quiet = {"task": {"type": "toy", "noisy": False}, "steps": 15}
    _, parts = train(tmp_path / "parts", batch=4, accumulation=3, **quiet)
    _, whole = train(tmp_path / "whole", batch=12, accumulation=1, **quiet)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-5)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for every in (4, 1000):
        torch.manual_seed(3)
        train(tmp_path / str(every), steps=12, validate_every=every, samples=True, samples_every=every, checkpoint_every=every)
        runs.append(lines(tmp_path / str(every)))
    assert runs[0] == runs[1]
    assert sorted(lines(tmp_path / "4", "valid")) == [4, 8, 12]
    assert sorted(lines(tmp_path / "1000", "valid")) == [12]


def test_every_term_is_logged_under_its_name(tmp_path: Path) -> None:
    train(tmp_path, steps=3, groups={"discriminator": {"lr": 5e-3}})
    record = lines(tmp_path)[3]
    assert set(record) == {"step", *(f"codec/{term}" for term in ("loss", "l1", "fooled", "gradient", "lr"))} | {
        f"discriminator/{term}" for term in ("loss", "real", "fake", "gradient", "lr")
    }
    assert record["codec/loss"] == pytest.approx(10 * record["codec/l1"] + record["codec/fooled"], rel=1e-5)
    assert record["discriminator/lr"] == pytest.approx(record["codec/lr"] / 2)


def test_a_loss_that_is_not_finite_names_step_term_and_items(tmp_path: Path) -> None:
    batches = iter(Order(50, 4))
    guilty = [next(batches) for _ in range(11)][-1]  # second micro-batch of the fourth step, in the first epoch
    with pytest.raises(TrainingError) as raised:
        train(tmp_path, data=Points(broken=guilty[2]), steps=40, checkpoint_every=1)
    message = str(raised.value)
    assert message.startswith("step 4: ") and "codec/l1 is nan" in message and "weights of step 3 are in" in message
    assert f"the batch was: {', '.join(f'point-{i}' for i in guilty)}. " in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    outcome, net = train(tmp_path, steps=10)
    assert outcome.reason == "finished" and all(bool(x.isfinite().all()) for x in net.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    class Cliff(GanTask):
        def step(self, batch, progress):  # type: ignore[no-untyped-def]
            for name, terms in super().step(batch, progress):
                if progress.step >= 2:  # the root of 0 has a finite value and an infinite slope
                    terms["loss"] = terms["loss"] + (terms["loss"] * 0).sqrt()
                yield name, terms

    settings, net = config(steps=5), Net()
    loop = TrainingLoop(settings, Cliff(net), folder=tmp_path, engine=DistributedContext(cpu=True), save=net.save)
    batch = collate([Points()[i] for i in range(4)])

    class Same:
        def iter_from(self, position: int):  # type: ignore[no-untyped-def]
            while True:
                yield batch

    with pytest.raises(TrainingError, match="step 3: .*gradient is nan.*point-0, point-1"):
        loop.run(TrainingData(Same()))


@pytest.mark.parametrize(
    ("yields", "message"),
    [
        (("judge", {"loss": 1.0}), "'judge', which is not a group: codec, discriminator"),
        (("codec", {"l1": 1.0}), "lack 'loss'"),
    ],
)
def test_a_task_that_yields_nonsense_is_told(tmp_path: Path, yields: tuple[str, dict[str, float]], message: str) -> None:
    class Odd(GanTask):
        def step(self, batch, progress):  # type: ignore[no-untyped-def]
            yield yields

    net = Net()
    loop = TrainingLoop(config(), Odd(net), folder=tmp_path, engine=DistributedContext(cpu=True), save=net.save)
    batches = type("Same", (), {"iter_from": lambda self, position: iter([collate([Points()[0]])] * 3)})()
    with pytest.raises(TrainingError, match=message):
        loop.run(TrainingData(batches))


def test_time_runs_out_with_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(tmp_path / "whole", steps=25)
    torch.manual_seed(1)
    outcome, _ = train(tmp_path / "parts", steps=25, minutes=1e-6)
    assert outcome.reason == "out of time" and outcome.step == 1
    for _ in range(30):
        torch.manual_seed(99)  # a new process has other chance
        outcome, _ = train(tmp_path / "parts", steps=25, minutes=0.0008)
        if outcome.reason == "finished":
            break
    assert outcome.step == 25
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert lines(tmp_path / "parts", "valid") == lines(tmp_path / "whole", "valid")


def test_bf16_trains(tmp_path: Path) -> None:
    train(tmp_path, steps=40, precision="bf16", task={"type": "toy", "noisy": False})
    losses = [record["codec/l1"] for record in lines(tmp_path).values()]
    assert losses[-1] < 0.7 * losses[0]


def test_fp16_scales_skips_what_overflows_and_goes_on(tmp_path: Path) -> None:
    """On the CPU, where the engine would refuse it: the scalers are the same."""
    outcomes = []
    for steps in (20, 60):
        settings, net, engine = (
            config(steps=steps, precision="fp16", task={"type": "toy", "noisy": False}),
            Net(),
            DistributedContext(cpu=True),
        )
        engine.dtype = torch.float16
        loop = TrainingLoop(settings, GanTask(net, noisy=False), folder=tmp_path, engine=engine, save=net.save)
        if steps == 20:
            for group in loop.groups.values():
                group.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        loop.resume()
        outcomes.append({name: group.scaler.get_scale() for name, group in loop.groups.items()})
        loop.run(TrainingData(ToyBatches(Points(), 4)))
    first, second = outcomes
    assert first == {"codec": 2.0**40, "discriminator": 2.0**40}
    assert all(2.0**8 < scale < 2.0**40 for scale in second.values())  # halved at each overflow, and remembered
    losses = [record["codec/l1"] for record in lines(tmp_path).values()]
    assert losses[-1] < 0.7 * losses[0]


def test_fp16_wants_a_gpu() -> None:
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        DistributedContext("fp16", cpu=True)


def test_without_accelerate_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TrainingError, match=r'pip install -e "\.\[train\]"'):
        DistributedContext()


def test_the_config_explains_its_mistakes(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="acumulation: unknown field. Did you mean 'accumulation'"):
        config(acumulation=2)
    with pytest.raises(
        TrainingError, match=r"groups: \['critics'\] are not groups of this task. Available: codec, discriminator"
    ):
        train(tmp_path, groups={"critics": {"lr": 1.0}})
