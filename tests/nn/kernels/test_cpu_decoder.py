"""Compiled decoding steps, compared with the same transformer and weights in torch."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import MaskedSequence
from cadenza.nn.attention import CrossKV
from cadenza.nn.conditioning import ConditioningInputs
from cadenza.nn.kernels import decode_step
from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder
from cadenza.nn.rope import RotaryTable, rotary_table
from cadenza.nn.transformer import Transformer
from cadenza.nn.weight_quantization import QuantizedLinear, quantize_linears

TOLERANCE = 5e-3  # relative error of int8 keys and values and int16 inputs


@dataclass
class Case:
    dim: int = 96
    heads: int = 3
    kind: str = "int8"
    batch: int = 2
    positions: int = 20
    tokens: int = 0  # of the cross-attention source
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
        transformer = Transformer(
            self.dim, 2, heads=self.heads, hidden=4 * self.dim, source=source, style=style, bias=self.bias
        )
        for part in transformer.modules():
            if isinstance(part, nn.Linear):
                part.weight.data = random(*part.weight.shape) * 0.7 * part.in_features**-0.5
            if isinstance(part, nn.LayerNorm):
                part.weight.data += 0.1 * random(self.dim)
        quantize_linears(transformer, self.kind, int8_only=("style", "cross.kv"))
        self.transformer = transformer.eval().requires_grad_(False)
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
            self.source = transformer.project_cross_kv(MaskedSequence(random(self.batch, self.tokens, self.dim), mask, moments))
        if self.style:
            self.styles = transformer.adaln_params(random(self.batch, 16))

    def decoder(self, rows: slice = slice(None)) -> QuantizedDecoder:
        def part(source: CrossKV) -> CrossKV:
            mask, any_valid = source.reach
            reach = source.reach._replace(
                mask=None if mask is None else mask[rows], any_valid=None if any_valid is None else any_valid[rows]
            )
            return CrossKV(source.keys[rows], source.values[rows], reach)

        conditions = ConditioningInputs(
            prefix=None,
            valid=self.valid[rows] if self.padding else None,
            rotation=None if self.rotation is None else RotaryTable(*self.rotation),
            additive=None,
            concat=None,
            cross_kv=None if self.source is None else [part(kv) for kv in self.source],
            adaln=None if self.styles is None else [style[rows] for style in self.styles],
        )
        return QuantizedDecoder(self.transformer, self.head, conditions, sequences=len(self.x[rows]), positions=self.positions)

    def steps(self, *, fed: int, rows: slice = slice(None)) -> Tensor:
        """Return the logits of the positions after the first `fed`, which are prefilled."""
        decoder, x = self.decoder(rows), self.x[rows]
        decoder.prefill(x[:, :fed], 0)
        out = [decoder.step(x[:, position : position + 1], position).clone() for position in range(fed, self.positions)]
        decoder.close()
        return torch.stack(out, 1)

    def expected(self, *, fed: int) -> Tensor:
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
    Case(dim=64, heads=1, batch=1, positions=600),  # more positions than one integer sum can hold
    Case(dim=512, heads=1, batch=1),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@torch.inference_mode()
def test_steps_equal_the_transformer(case: Case) -> None:
    for fed in (max(1, case.padding), case.positions // 2):
        got, expected = case.steps(fed=fed), case.expected(fed=fed)
        assert (got - expected).norm() < TOLERANCE * expected.norm()


@torch.inference_mode()
def test_a_sequence_does_not_depend_on_the_batch_or_the_prefill() -> None:
    case = Case(tokens=5, style=True, rotary=True, padding=2, batch=3, positions=90)
    together = case.steps(fed=40)
    for i in range(case.batch):
        assert torch.equal(case.steps(fed=40, rows=slice(i, i + 1)), together[i : i + 1])
    assert torch.equal(case.steps(fed=3)[:, 37:], together)


@pytest.mark.parametrize("padding", [1, 30, 61])
@torch.inference_mode()
def test_padding_changes_nothing(padding: int) -> None:
    """Check padding after and between the positions of a prefix, with padding after the tokens of a condition."""
    case = Case(batch=1, tokens=9, timeline=True, rotary=True, positions=70)
    assert case.source is not None and case.rotation is not None
    expected = case.steps(fed=12)
    n, positions = case.positions, torch.arange(case.positions)
    for start in (0, 3, 12):
        index = torch.cat([positions[:start], torch.full((padding,), n - 1), positions[start:]])
        padded = copy(case)
        padded.positions, padded.padding, padded.x = n + padding, padding, case.x[:, index]
        padded.valid = ((torch.arange(n + padding) < start) | (torch.arange(n + padding) >= start + padding))[None]
        padded.rotation = RotaryTable(*(part[:, :, index] for part in case.rotation))
        padded.source = []
        for keys, values, reach in case.source:
            assert reach.mask is not None and reach.any_valid is not None
            longer = (torch.cat([x, torch.randn(1, 3, padding, 32)], 2) for x in (keys, values))
            mask = F.pad(reach.mask[:, :, index], (0, padding), value=-torch.inf)
            padded.source.append(CrossKV(*longer, reach._replace(mask=mask, any_valid=reach.any_valid[:, index])))
        assert torch.equal(padded.steps(fed=12 + padding), expected)


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza.nn.kernels.cpu_decoder.MIN_BYTES", 0)


@pytest.mark.usefixtures("every_thread")
@torch.inference_mode()
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    case, threads = Case(dim=192, heads=3, tokens=5), torch.get_num_threads()
    alone = case.steps(fed=4)
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(case.steps(fed=4), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("every_thread")
def test_workers_are_released_when_the_main_thread_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, original = torch.get_num_threads(), decode_step.transformer_step

    def interrupted(share: tuple[int, int], *rest: Any) -> Any:
        if share[0] == 0:
            raise KeyboardInterrupt
        return original(share, *rest)

    try:
        torch.set_num_threads(3)
        decoder = Case().decoder()
        decoder.step(torch.ones(2, 1, 96), 0)
        monkeypatch.setattr(decode_step, "transformer_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.step(torch.ones(2, 1, 96), 1)
        decoder.close()
        assert decoder.pool is not None and not any(thread.is_alive() for thread in decoder.pool._threads)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("every_thread")
def test_close_stops_the_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        decoder = Case().decoder()
        decoder.step(torch.ones(2, 1, 96), 0)
        assert decoder.pool is not None and decoder.pool._threads
        decoder.close()
        assert not any(thread.is_alive() for thread in decoder.pool._threads)
    finally:
        torch.set_num_threads(threads)
