"""What every generator must keep, asked of every file in the folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, KnownFrames, Latents, MaskedSequence, Slot
from cadenza.generators.base import GenerationInputs, Generator, GeneratorSpec

Example = tuple[GeneratorSpec, FrameFormat, dict[Slot, int]]
FRAMES = [23, 9, 16]
SEEDS = [5, 5, 2**40]


def example(name: str) -> Example:
    return GeneratorSpec.lookup(name).example()


def built(name: str) -> Generator:
    """The generator with weights large enough that its conditions matter."""
    spec, frame_format, widths = example(name)
    generator = spec.build(frame_format, widths).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5)
    return generator


def conditions(widths: dict[Slot, int], batch: int = 3, frames: int = 23) -> FusedConditions:
    """Something in every slot: tokens of unequal lengths with a gap, none at all for the second item."""
    rng = torch.Generator().manual_seed(1)

    def tokens(slot: Slot) -> MaskedSequence | None:
        mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]])[:batch].bool()
        return MaskedSequence(torch.randn(batch, 5, widths[slot], generator=rng), mask) if slot in widths else None

    def vectors(slot: Slot, *shape: int) -> Tensor | None:
        return torch.randn(batch, *shape, widths[slot], generator=rng) if slot in widths else None

    return FusedConditions(
        tokens("cross"), tokens("prepend"), vectors("add", frames), vectors("concat", frames), vectors("global")
    )


def item(fused: FusedConditions, i: int) -> FusedConditions:
    """One item's conditions without the padding of the batch."""

    def alone(tokens: MaskedSequence | None) -> MaskedSequence | None:
        if tokens is None or not tokens.mask[i].any():
            return None
        return MaskedSequence(tokens.x[i : i + 1, tokens.mask[i]], tokens.mask[i : i + 1, tokens.mask[i]])

    vectors = {
        name: None if x is None else x[i : i + 1] for name, x in vars(fused).items() if not isinstance(x, MaskedSequence)
    }
    framed = {name: vectors[name][:, : FRAMES[i]] for name in ("add", "concat") if vectors.get(name) is not None}
    vectors |= framed
    return FusedConditions(**{**vectors, "cross": alone(fused.cross), "prepend": alone(fused.prepend)})


def pick(fused: FusedConditions, order: Sequence[int]) -> FusedConditions:
    def chosen(x: Any) -> Any:
        if isinstance(x, MaskedSequence):
            return MaskedSequence(x.x[list(order)], x.mask[list(order)])
        return None if x is None else x[list(order)]

    return FusedConditions(**{name: chosen(x) for name, x in vars(fused).items()})


def content(frames: Codes | Latents) -> Tensor:
    return frames.ids if isinstance(frames, Codes) else frames.z


def target(frame_format: FrameFormat, batch: int = 3, frames: int = 23) -> Codes | Latents:
    rng = torch.Generator().manual_seed(2)
    if frame_format.kind == "codes":
        ids = torch.randint(frame_format.cardinality, (batch, frame_format.channels, frames), generator=rng)
        return Codes(ids, torch.tensor(FRAMES[:batch]), ended=torch.tensor([True, False, True])[:batch])
    return Latents(torch.randn(batch, frame_format.channels, frames, generator=rng), torch.tensor(FRAMES[:batch]))


def run(
    generator: Generator,
    branches: list[GuidanceBranch],
    *,
    frames: list[int],
    seeds: list[int],
    known: KnownFrames | None = None,
) -> list[Tensor]:
    """What is generated for each item, without padding."""
    plan = GenerationInputs(torch.tensor(frames), seeds, generator.spec.sampling(), known)
    return [content(clip)[0] for clip in generator.generate(branches, plan)]


def guided(fused: FusedConditions) -> list[GuidanceBranch]:
    return [GuidanceBranch(2.5, fused), GuidanceBranch(-1.5, replace(fused, cross=None, prepend=None))]


def says_what_it_is(name: str) -> None:
    spec, frame_format, widths = example(name)
    assert spec.type == name  # type: ignore[attr-defined]
    assert type(spec).__module__.endswith(f".{name}") and set(widths) <= spec.slots
    spec.validate_inputs(frame_format, widths)
    spec.sampling.parse({})


def round_trips(name: str) -> None:
    spec, frame_format, widths = example(name)
    assert GeneratorSpec.parse(json.loads(spec.to_json())) == spec
    generator, other = built(name), spec.build(frame_format, widths)
    other.load_state_dict(load(save(generator.state_dict())))
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), other.parameters(), strict=True))


def refuses_what_does_not_fit(name: str) -> None:
    spec, frame_format, widths = example(name)
    with pytest.raises(ValueError, match="codes|latents"):
        spec.validate_inputs(replace(frame_format, kind="latents" if frame_format.kind == "codes" else "codes"), widths)
    for slot in {"cross", "prepend", "add", "concat", "global"} - spec.slots:
        with pytest.raises(ValueError, match=slot):
            spec.validate_inputs(frame_format, {slot: 8})


def learns(name: str) -> None:
    spec, frame_format, widths = example(name)
    torch.manual_seed(0)
    generator = spec.build(frame_format, widths).train()
    terms = generator.losses(target(frame_format), conditions(widths), torch.Generator().manual_seed(3))
    assert all(term.dim() == 0 and term.isfinite() for term in terms.values())
    terms["loss"].backward()
    for key, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key
    again = generator.losses(target(frame_format), conditions(widths), torch.Generator().manual_seed(3))
    assert all(torch.equal(terms[key], again[key]) for key in terms)
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    loss = first = terms["loss"]
    for _ in range(30):
        optimiser.zero_grad()
        loss = generator.losses(target(frame_format), conditions(widths), torch.Generator().manual_seed(3))["loss"]
        loss.backward()
        optimiser.step()
    assert loss < 0.8 * first


def the_loss_ignores_padding(name: str) -> None:
    _, frame_format, widths = example(name)
    generator, whole, fused = built(name), target(frame_format), conditions(widths)
    spoilt = content(whole).clone()
    fused_other = conditions(widths)
    for i, length in enumerate(FRAMES):
        spoilt[i, :, length:] = 1
    for tokens in (fused_other.cross, fused_other.prepend):
        if tokens is not None:
            tokens.x[~tokens.mask] = torch.nan
    other = replace(whole, **{"ids" if isinstance(whole, Codes) else "z": spoilt})
    rng = [torch.Generator().manual_seed(3) for _ in range(2)]
    a, b = generator.losses(whole, fused, rng[0]), generator.losses(other, fused_other, rng[1])
    assert torch.equal(a["loss"], b["loss"])


def gives_the_frames_asked_for(name: str) -> None:
    generator = built(name)
    plan = GenerationInputs(torch.tensor(FRAMES), SEEDS, generator.spec.sampling())
    chunks = list(generator.stream([GuidanceBranch(1.0, conditions(example(name)[2]))], plan))
    lengths = torch.stack([chunk.lengths for chunk in chunks]).sum(0)
    assert (lengths <= torch.tensor(FRAMES)).all() and (lengths > 0).all()
    assert all((chunk.lengths <= content(chunk).shape[-1]).all() for chunk in chunks)
    whole = generator.generate([GuidanceBranch(1.0, conditions(example(name)[2]))], plan)
    assert torch.equal(torch.cat([content(chunk) for chunk in chunks], -1), content(whole))
    if isinstance(whole, Codes):
        assert 0 <= whole.ids.min() and whole.ids.max() < generator.frame_format.cardinality


def the_same_alone_and_in_any_batch(name: str) -> None:
    generator, fused = built(name), conditions(example(name)[2])
    together = run(generator, guided(fused), frames=FRAMES, seeds=SEEDS)
    order = [2, 0, 1]
    moved = run(generator, guided(pick(fused, order)), frames=[FRAMES[i] for i in order], seeds=[SEEDS[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(moved[place], together[i])
        alone = run(generator, guided(item(fused, i)), frames=[FRAMES[i]], seeds=[SEEDS[i]])
        torch.testing.assert_close(alone[0], together[i])


def seeds_matter_and_so_do_conditions(name: str) -> None:
    generator, fused = built(name), conditions(example(name)[2])
    a = run(generator, [GuidanceBranch(1.0, fused)], frames=FRAMES, seeds=SEEDS)[0]
    assert not same(a, run(generator, [GuidanceBranch(1.0, fused)], frames=FRAMES, seeds=[1, 2, 3])[0])
    for slot in vars(fused):
        less = replace(fused, **{slot: None})
        if getattr(fused, slot) is not None:
            assert not same(a, run(generator, [GuidanceBranch(1.0, less)], frames=FRAMES, seeds=SEEDS)[0]), slot


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4)


def what_is_masked_contributes_nothing(name: str) -> None:
    generator, fused = built(name), conditions(example(name)[2])
    want = run(generator, [GuidanceBranch(1.0, fused)], frames=FRAMES, seeds=SEEDS)
    spoilt = conditions(example(name)[2])
    for tokens in (spoilt.cross, spoilt.prepend):
        if tokens is not None:
            tokens.x[~tokens.mask] = torch.nan
    got = run(generator, [GuidanceBranch(1.0, spoilt)], frames=FRAMES, seeds=SEEDS)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def guidance_is_a_weighted_sum(name: str) -> None:
    generator, fused = built(name), conditions(example(name)[2])
    calls: list[int] = []
    handle = generator.register_forward_hook(lambda *_: calls.append(0))
    rows: list[int] = []
    for module in generator.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
            break
    one = run(generator, [GuidanceBranch(1.0, fused)], frames=FRAMES, seeds=SEEDS)
    assert not rows or max(rows) == len(FRAMES)
    for branches in (
        [GuidanceBranch(1.0, fused), GuidanceBranch(0.0, FusedConditions())],
        [GuidanceBranch(0.5, fused), GuidanceBranch(0.5, fused)],
        [GuidanceBranch(3.0, fused), GuidanceBranch(-2.0, fused)],
    ):
        assert all(same(a, b) for a, b in zip(one, run(generator, branches, frames=FRAMES, seeds=SEEDS), strict=True))
    handle.remove()
    assert not all(same(a, b) for a, b in zip(one, run(generator, guided(fused), frames=FRAMES, seeds=SEEDS), strict=True))


def known_frames_are_kept(name: str) -> None:
    _, frame_format, widths = example(name)
    generator, fused = built(name), conditions(widths)
    mask = torch.arange(23) < torch.tensor([7, 0, 16])[:, None]
    value = target(frame_format)
    got = run(generator, guided(fused), frames=FRAMES, seeds=SEEDS, known=KnownFrames(value, mask))
    assert torch.equal(got[0][:, :7], content(value)[0, :, :7]) and torch.equal(got[2], content(value)[2, :, :16])
    free = run(generator, guided(fused), frames=FRAMES, seeds=SEEDS)
    assert same(got[1], free[1]) and not same(got[0], free[0])
    for i in (0, 1):
        part = KnownFrames(next(iter(pick_frames(value, i))), mask[i : i + 1])
        alone = run(generator, guided(item(fused, i)), frames=[FRAMES[i]], seeds=[SEEDS[i]], known=part)
        torch.testing.assert_close(alone[0], got[i])


def pick_frames(value: Codes | Latents, i: int) -> list[Codes | Latents]:
    return [Codes(value.ids[i : i + 1])] if isinstance(value, Codes) else [Latents(value.z[i : i + 1])]


def closing_stops_the_work(name: str) -> None:
    generator = built(name)
    calls: list[int] = []
    module = next(module for module in generator.modules() if isinstance(module, torch.nn.LayerNorm))
    module.register_forward_hook(lambda *_: calls.append(0))
    longest = generator.spec.max_frames
    stream = generator.stream(
        [GuidanceBranch(1.0, FusedConditions())], GenerationInputs(torch.tensor([longest]), [0], generator.spec.sampling())
    )
    assert not calls  # nothing runs before it is asked for
    next(stream)
    before = len(calls)
    stream.close()  # type: ignore[attr-defined]
    assert next(stream, None) is None and len(calls) == before


CLAUSES: list[Callable[[str], None]] = [
    says_what_it_is,
    round_trips,
    refuses_what_does_not_fit,
    learns,
    the_loss_ignores_padding,
    gives_the_frames_asked_for,
    the_same_alone_and_in_any_batch,
    seeds_matter_and_so_do_conditions,
    what_is_masked_contributes_nothing,
    guidance_is_a_weighted_sum,
    known_frames_are_kept,
    closing_stops_the_work,
]


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("name", GeneratorSpec.registered_names())
def test_contract(name: str, clause: Callable[[str], None]) -> None:
    clause(name)
