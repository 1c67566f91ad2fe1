"""What every conditioner must keep, asked of every file in the folder and of one dropped in here."""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import cadenza.conditioners as family
from cadenza.conditioners.base import Conditioner, ConditionerSet, ConditionerSpec, PreparedInputs
from cadenza.core.types import Condition, ConditionKind
from cadenza.dsp.audio import Audio
from cadenza.system.fusion import fuse
from cadenza.system.spec import FusionSpec

Case = tuple[ConditionerSpec, list[Any]]


def built(spec: ConditionerSpec) -> Conditioner[Any]:
    """The part with weights that differ everywhere, nulls included, so that no test passes on zeros."""
    part = spec.build().eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / max(parameter.shape[-1], 1) ** 0.5)
    return part


def run(part: Conditioner[Any], values: list[Any]) -> Condition:
    return part(part.encode(part.prepare(values)))


def tensors(prepared: PreparedInputs) -> dict[str, Tensor]:
    return {**prepared.tensors, "present": prepared.present}


def same(row: int, many: Condition, one: Condition) -> None:
    """Row `row` of a batch is what the item gives alone; positions that only pad the batch do not count."""
    n = one.embeddings.shape[1]
    assert torch.equal(many.mask[row, :n], one.mask[0]) and not many.mask[row, n:].any()
    torch.testing.assert_close(many.embeddings[row, :n][one.mask[0]], one.embeddings[0][one.mask[0]], atol=1e-6, rtol=1e-5)


def says_what_it_is(spec: ConditionerSpec, values: list[Any]) -> None:
    name = type(spec).__module__.rpartition(".")[2]
    assert spec.type == name  # type: ignore[attr-defined]
    assert len(values) >= 2 and all(value is not None for value in values)
    assert spec.output_kind in get_args(ConditionKind)
    assert spec.widget and isinstance(spec.widget, str)


def round_trips_through_json(spec: ConditionerSpec, values: list[Any]) -> None:
    assert ConditionerSpec.parse(json.loads(spec.to_json())) == spec
    assert spec.model_copy(update={"output_dim": spec.output_dim + 1}) != spec


def prepares_on_the_host(spec: ConditionerSpec, values: list[Any]) -> None:
    prepared = built(spec).prepare([*values, None])
    assert prepared.present.tolist() == [True] * len(values) + [False]
    for name, x in tensors(prepared).items():
        assert x.device.type == "cpu", name
        assert len(x) == len(values) + 1, f"{name} has no row for each item"
        assert not x.requires_grad, name


def gives_what_it_says(spec: ConditionerSpec, values: list[Any]) -> None:
    out = run(built(spec), values)
    assert out.embeddings.shape == (*out.mask.shape, spec.output_dim) and len(out.embeddings) == len(values)
    assert out.mask.any(1).all() and out.present.all()
    assert torch.isfinite(out.embeddings).all()
    if spec.output_kind == "vector":
        assert out.embeddings.shape[1] == 1
    assert not torch.equal(out.embeddings[0][out.mask[0]], out.embeddings[1][out.mask[1]]), "two values give the same"


def none_is_absent(spec: ConditionerSpec, values: list[Any]) -> None:
    for absent in ([*values, None], [None], [None, None]):
        out = run(built(spec), absent)
        assert out.present.tolist() == [value is not None for value in absent]
        assert torch.equal(out.mask.any(1), out.present)
        assert torch.isfinite(out.embeddings).all()
    assert (out.null_embedding is None) == (spec.null_embedding == "zeros")
    assert out.null_embedding is None or out.null_embedding.shape[-1] == spec.output_dim


def keeps_items_apart(spec: ConditionerSpec, values: list[Any]) -> None:
    part = built(spec)
    batch, reverse = [*values, None, values[0]], [values[0], None, *reversed(values)]
    there, back = run(part, batch), run(part, reverse)
    for row, value in enumerate(batch):
        alone = run(part, [value])
        same(row, there, alone)
        same(len(batch) - 1 - row, back, alone)


def hears_as_long_as_a_sound_lasts(spec: ConditionerSpec, values: list[Any]) -> None:
    """What declares a sample rate and a hop gives each sound of a batch the frames of its own length."""
    rate, hop = getattr(spec, "sample_rate", None), getattr(spec, "hop", None)
    if rate is None or hop is None:
        return
    frames = (11, 3)
    out = run(built(spec), [lasting(values[0], n * hop / rate) for n in frames])
    for n, mask in zip(frames, out.mask, strict=True):
        assert abs(int(mask.sum()) - n) <= 1 and mask[: int(mask.sum())].all()


def lasting(value: Any, seconds: float) -> Any:
    """Repeat a sound, or each of several, until so many seconds have passed."""
    if isinstance(value, Audio):
        samples = round(seconds * value.sample_rate)
        return Audio(value.wave.repeat(1, 1, -(-samples // value.wave.shape[-1]))[..., :samples], value.sample_rate)
    return {name: lasting(sound, seconds) for name, sound in value.items()} if isinstance(value, Mapping) else value


def learns_everywhere(spec: ConditionerSpec, values: list[Any]) -> None:
    """Through fusion, as in training: also the null must learn."""
    slot = "global" if spec.output_kind == "vector" else "cross"
    fusion = FusionSpec.parse({slot: ["it"]})
    parts = ConditionerSet({"it": built(spec).train()})
    items = [{"it": value} for value in values] + [{}]
    fused = fuse(parts(parts.encode(parts.prepare(items))), fusion, frames=3)
    x = fused.global_vector if fused.global_vector is not None else fused.cross.x[fused.cross.mask]  # type: ignore[union-attr]
    x.square().sum().backward()
    for name, parameter in parts.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


def has_frozen_features(spec: ConditionerSpec, values: list[Any]) -> None:
    part = built(spec).train()
    features = part.encode(part.prepare(values))
    assert all(not x.requires_grad for x in tensors(features).values())


def never_waits_for_the_host(spec: ConditionerSpec, values: list[Any]) -> None:
    """On the meta device there is nothing to read, so any look at a value from the host raises."""
    real = built(spec)
    features = real.encode(real.prepare([*values, None]))
    with torch.device("meta"):
        part = spec.build()
    assert {name: x.shape for name, x in part.state_dict().items()} == {name: x.shape for name, x in real.state_dict().items()}
    out = part(features.to("meta"))
    assert out.embeddings.is_meta and out.mask.is_meta and out.embeddings.shape == real(features).embeddings.shape
    assert real.to("meta")(features.to("meta")).embeddings.is_meta


def loads_what_it_saved(spec: ConditionerSpec, values: list[Any]) -> None:
    """Into a part built on the meta device: nothing may live outside the state dict."""
    real = built(spec)
    real.prepare_training(values * 3)
    with torch.device("meta"):
        other = spec.build()
    other = other.to_empty(device="cpu").eval()
    other.load_state_dict({name: x.clone() for name, x in real.state_dict().items()}, strict=True)
    expected = run(real, values)
    torch.testing.assert_close(run(other, values).embeddings, expected.embeddings, atol=0, rtol=0)
    torch.testing.assert_close(run(copy.deepcopy(real), values).embeddings, expected.embeddings, atol=0, rtol=0)


def fits_repeatably(spec: ConditionerSpec, values: list[Any]) -> None:
    one = built(spec)
    other = copy.deepcopy(one)
    one.prepare_training(iter(values * 3))
    other.prepare_training(iter([*reversed(values * 3), None]))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


CONTRACT: list[Callable[[ConditionerSpec, list[Any]], None]] = [
    says_what_it_is,
    round_trips_through_json,
    prepares_on_the_host,
    gives_what_it_says,
    none_is_absent,
    keeps_items_apart,
    hears_as_long_as_a_sound_lasts,
    learns_everywhere,
    has_frozen_features,
    never_waits_for_the_host,
    loads_what_it_saved,
    fits_repeatably,
]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("absent", ["learned", "zeros"])
@pytest.mark.parametrize("name", ConditionerSpec.registered_names())
def test_conditioner(name: str, absent: str, promise: Callable[[ConditionerSpec, list[Any]], None]) -> None:
    spec, values = ConditionerSpec.lookup(name).example()
    assert spec.type == name  # type: ignore[attr-defined]
    promise(ConditionerSpec.parse({**spec.to_dict(), "null_embedding": absent}), values)


COIN = '''
"""Heads or tails."""

from typing import ClassVar, Literal

import torch
from torch import nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec
from cadenza.core.types import MaskedSequence


class CoinSpec(ConditionerSpec):
    type: Literal["coin"] = "coin"
    widget: ClassVar[str] = "choice"

    @property
    def output_kind(self):
        return "vector"

    @classmethod
    def example(cls):
        return cls(output_dim=4), ["heads", "tails"]

    def build(self):
        return Coin(self)


class Coin(Conditioner[str]):
    placeholder = "heads"

    def __init__(self, spec):
        super().__init__(spec)
        self.table = nn.Embedding(2, spec.output_dim)

    def preprocess(self, values):
        return {"side": torch.tensor([value == "heads" for value in values]).long()}

    def project(self, tensors):
        x = self.table(tensors["side"])[:, None]
        return MaskedSequence(x, torch.ones_like(x[..., 0], dtype=torch.bool))
'''


@pytest.fixture
def coin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one new conditioner in it, on the family's path as a file next to the others would be."""
    (tmp_path / "coin.py").write_text(COIN)
    monkeypatch.setattr(family, "__path__", [*family.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("cadenza.conditioners.coin", None)
    ConditionerSpec.registry.pop("coin", None)


def test_one_new_file_is_a_new_conditioner(coin: Path) -> None:
    assert "coin" in ConditionerSpec.registered_names() and "coin" not in ConditionerSpec.registry
    found = ConditionerSpec.parse({"type": "coin", "output_dim": 4})
    assert found == ConditionerSpec.lookup("coin").example()[0]
    with pytest.raises(Exception, match=r"outptu_dim: unknown field. Did you mean 'output_dim'"):
        ConditionerSpec.parse({"type": "coin", "outptu_dim": 4, "output_dim": 4})
    for promise in CONTRACT:
        promise(*ConditionerSpec.lookup("coin").example())


SIDE = 'tensors["side"]'
BREACHES = {
    "short batch": ("for value in values]).long()", "for value in values[:1]]).long()", prepares_on_the_host),
    "deaf": (f"self.table({SIDE})", f"self.table({SIDE} * 0)", gives_what_it_says),
    "untrained": (f"self.table({SIDE})", f"self.table({SIDE}).detach()", learns_everywhere),
    "mixes items": (f"self.table({SIDE})", f"self.table({SIDE}) + {SIDE}.sum()", keeps_items_apart),
    "looks at values": (f"self.table({SIDE})", f"self.table(torch.tensor({SIDE}.tolist()))", never_waits_for_the_host),
    "hidden state": ("return Coin(self)", "return Hidden(self)", loads_what_it_saved),
}
HIDDEN = """

class Hidden(Coin):
    def __init__(self, spec):
        super().__init__(spec)
        self.shift = torch.rand(1)

    def project(self, tensors):
        tokens = super().project(tensors)
        return MaskedSequence(tokens.x + self.shift, tokens.mask)
"""


@pytest.mark.parametrize(("right", "wrong", "promise"), BREACHES.values(), ids=BREACHES)
def test_the_contract_can_fail(coin: Path, right: str, wrong: str, promise: Callable[..., None]) -> None:
    """Each promise, asked of a conditioner that breaks it."""
    assert right in COIN
    (coin / "coin.py").write_text(COIN.replace(right, wrong) + HIDDEN)
    with pytest.raises(Exception):  # noqa: B017, PT011  # how it is noticed is up to the promise
        promise(*ConditionerSpec.lookup("coin").example())
