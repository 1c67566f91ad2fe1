"""A step of the compiled kernel: against the same transformer, with the same weights, in torch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cadenza.core.types import MaskedSequence
from cadenza.nn.attention import CrossKV
from cadenza.nn.kernels import decode_step
from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder
from cadenza.nn.rope import RotaryTable, rotary_table
from cadenza.nn.transformer import Transformer
from cadenza.nn.weight_quantization import QuantizedLinear, quantize_linears

NEAR = 5e-3  # of what keys and values of 8 bits and inputs of 16 change


@dataclass
class Case:
    dim: int = 96
    heads: int = 3
    kind: str = "int8"
    batch: int = 2
    positions: int = 20
    tokens: int = 0  # of a condition to attend to
    style: bool = False
    bias: bool = False
    rotary: bool = False
    padding: int = 0  # of the first sequence
    timeline: bool = False

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(7)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng)

        source = self.dim if self.tokens else None
        style = 16 if self.style else None
        made = Transformer(self.dim, 2, heads=self.heads, hidden=4 * self.dim, source=source, style=style, bias=self.bias)
        for part in made.modules():
            if isinstance(part, nn.Linear):
                part.weight.data = random(*part.weight.shape) * 0.7 * part.in_features**-0.5
            if isinstance(part, nn.LayerNorm):
                part.weight.data += 0.1 * random(self.dim)
        quantize_linears(made, self.kind, gently=("style", "cross.kv"))
        self.transformer = made.eval().requires_grad_(False)
        self.head = QuantizedLinear.from_linear(nn.Linear(self.dim, 70, bias=False), "int8")
        self.x = random(self.batch, self.positions, self.dim)
        self.rotation = rotary_table(torch.arange(self.positions)[None], self.dim // self.heads) if self.rotary else None
        self.valid = torch.ones(self.batch, self.positions, dtype=torch.bool)
        self.valid[0, : self.padding] = False
        self.source = self.styles = None
        if self.tokens:
            mask = torch.ones(self.batch, self.tokens, dtype=torch.bool)
            mask[0, self.tokens // 2 :] = False
            mask[1:2] = False
            moments = random(self.batch, self.tokens, self.positions) if self.timeline else None
            self.source = made.project_cross_kv(MaskedSequence(random(self.batch, self.tokens, self.dim), mask, moments))
        if self.style:
            self.styles = made.adaln_params(random(self.batch, 16))

    def decoding(self, rows: slice = slice(None)) -> QuantizedDecoder:
        def part(source: CrossKV) -> CrossKV:
            mask, alive = source.reach
            reach = source.reach._replace(
                mask=None if mask is None else mask[rows], any_valid=None if alive is None else alive[rows]
            )
            return CrossKV(source.keys[rows], source.values[rows], reach)

        return QuantizedDecoder(
            self.transformer,
            self.head,
            valid=self.valid[rows] if self.padding else None,
            rotation=None if self.rotation is None else RotaryTable(*self.rotation),
            source=None if self.source is None else [part(each) for each in self.source],
            styles=None if self.styles is None else [style[rows] for style in self.styles],
            shape=(len(self.x[rows]), self.positions),
        )

    def steps(self, *, fed: int, rows: slice = slice(None)) -> Tensor:
        """What the head makes of the positions after the first `fed`."""
        decoding, x = self.decoding(rows), self.x[rows]
        decoding.prefill(x[:, :fed], 0)
        out = [decoding.step(x[:, at : at + 1], at).clone() for at in range(fed, self.positions)]
        decoding.close()
        return torch.stack(out, 1)

    def wanted(self, *, fed: int) -> Tensor:
        n = self.positions
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        mask = (causal & (self.valid[:, None] | torch.eye(n, dtype=torch.bool)))[:, None]
        y = self.transformer(self.x, rotation=self.rotation, mask=mask, source=self.source, styles=self.styles)
        return self.head(y[:, fed:])


CASES = [
    Case(),
    Case(kind="int4"),
    Case(rotary=True, bias=True),
    Case(tokens=7, padding=3),
    Case(tokens=70, timeline=True, rotary=True, kind="int4", bias=True),
    Case(tokens=3, style=True, padding=5, batch=3),
    Case(dim=160, heads=2, batch=1, positions=70),  # heads of 80: two tiles of 48
    Case(dim=34, heads=2, batch=1, rotary=False),  # odd heads, a matrix of no whole tile
    Case(dim=64, heads=1, batch=1, positions=600),  # more than is summed up at a time
    Case(dim=512, heads=1, batch=1),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@torch.inference_mode()
def test_steps_are_those_of_the_transformer(case: Case) -> None:
    for fed in (max(1, case.padding), case.positions // 2):
        got, wanted = case.steps(fed=fed), case.wanted(fed=fed)
        assert (got - wanted).norm() < NEAR * wanted.norm()


@torch.inference_mode()
def test_a_sequence_is_the_same_alone_and_beside_others_and_however_it_is_fed() -> None:
    case = Case(tokens=5, style=True, rotary=True, padding=2, batch=3, positions=90)
    together = case.steps(fed=40)
    for i in range(case.batch):
        assert torch.equal(case.steps(fed=40, rows=slice(i, i + 1)), together[i : i + 1])
    assert torch.equal(case.steps(fed=3)[:, 37:], together)


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza.nn.kernels.cpu_decoder.SMALL", 0)


@pytest.mark.usefixtures("every_thread")
@torch.inference_mode()
def test_threads_change_nothing() -> None:
    case, threads = Case(dim=192, heads=3, tokens=5), torch.get_num_threads()
    alone = case.steps(fed=4)
    try:
        for many in (2, 3):
            torch.set_num_threads(many)
            assert torch.equal(case.steps(fed=4), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("every_thread")
def test_nobody_waits_for_a_thread_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, walk = torch.get_num_threads(), decode_step.decode_step

    def interrupted(share: tuple[int, int], *rest: Any) -> Any:
        if share[0] == 0:
            raise KeyboardInterrupt
        return walk(share, *rest)

    try:
        torch.set_num_threads(3)
        decoding = Case().decoding()
        decoding.step(torch.ones(2, 1, 96), 0)
        monkeypatch.setattr(decode_step, "decode_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoding.step(torch.ones(2, 1, 96), 1)
        decoding.close()
        assert decoding.crew is not None and not any(thread.is_alive() for thread in decoding.crew._threads)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("every_thread")
def test_threads_end_when_it_is_closed() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        decoding = Case().decoding()
        decoding.step(torch.ones(2, 1, 96), 0)
        assert decoding.crew is not None and decoding.crew._threads
        decoding.close()
        assert not any(thread.is_alive() for thread in decoding.crew._threads)
    finally:
        torch.set_num_threads(threads)
