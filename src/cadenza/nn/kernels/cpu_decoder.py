"""A transformer with quantised weights that several threads walk step by step, its keys and values in 8 bits."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.nn.attention import CrossKV
from cadenza.nn.kernels import decode_step
from cadenza.nn.rope import RotaryTable
from cadenza.nn.transformer import Block, Transformer
from cadenza.nn.weight_quantization import QuantizedLinear

ROWS = 32  # positions that are fed at a time
BLOCK = 64  # positions of a tile of keys
OVER = 2**62  # meetings: so many that nobody waits for another one
SMALL = 2**26  # bytes of weights that one worker has read before a second one would be of use


class QuantizedDecoder:
    """The memory of a batch of sequences and the threads that extend it; `close` ends these.

    `rotation`, `valid` [b n] and the biases of `source` are those of all positions that will come.
    """

    def __init__(
        self,
        transformer: Transformer,
        head: QuantizedLinear,
        *,
        valid: Bool[Tensor, "b n"] | None,
        rotation: RotaryTable | None,
        source: list[CrossKV] | None,
        styles: list[Float[Tensor, "b 1 e"]] | None,
        shape: tuple[int, int],
    ) -> None:
        """`shape`: sequences, and the positions of each."""
        self.batch, self.heads = shape[0], transformer.heads
        size = sum(x.nbytes for x in transformer.buffers())
        self.workers = torch.get_num_threads() if size >= SMALL else 1
        self.room, self.rotation = -(-shape[1] // BLOCK) * BLOCK, rotation
        self.kept: list[Any] = [transformer, head]  # whose memory the table points to
        blocks: list[Block] = list(transformer.blocks)  # type: ignore[arg-type]
        tokens, source_bias, alive = 0, _none(3), np.empty((0, 0), np.uint8)
        if source is not None:
            tokens = source[0].keys.shape[2]
            mask, real = source[0].reach
            if mask is not None:
                source_bias = _biased(mask.expand(self.batch, -1, -1, -1)[:, 0]).numpy()
            if real is not None:
                alive = real.expand(self.batch, -1, -1)[..., 0].to(torch.uint8).contiguous().numpy()
        token_room = -(-tokens // BLOCK) * BLOCK
        self.model = decode_step.DecoderTables(
            np.stack([self._layer(i, block, source, styles) for i, block in enumerate(blocks)]),
            np.array(self._pointers((transformer.norm.weight.float(), transformer.norm.bias.float())), np.int64),
            np.array(head.packed_weight.descriptor(), np.int64),
            np.array([self.heads, self.batch, self.room, tokens, token_room], np.int64),
            np.float32(transformer.norm.eps),
            _none(2) if valid is None else _biased(valid).numpy(),
            source_bias,
            alive,
        )
        self.logits, self.turn = np.empty((self.batch, head.out_features), np.float32), 0
        self.work = self._work([part for part in transformer.modules() if isinstance(part, QuantizedLinear)] + [head])
        self.crew = ThreadPoolExecutor(self.workers - 1, "walk") if self.workers > 1 else None

    def _work(self, parts: list[QuantizedLinear]) -> decode_step.Workspace:
        rows, workers = max(ROWS, self.batch), self.workers
        widest, outputs = max(part.in_features for part in parts), max(part.out_features for part in parts[:-1])
        longest = max(self.room, int(self.model.sizes[4]))
        return decode_step.Workspace(
            y=np.empty((rows, max(widest, outputs)), np.float32),
            numbers=np.empty((workers, rows, widest + widest % 2), np.int16),
            scale=np.empty((workers, rows), np.float32),
            sums=np.empty((workers, rows, max(1, *(part.groups for part in parts))), np.int32),
            room=np.empty((workers, widest), np.float32),
            scores=np.empty((workers, longest), np.float32),
            probable=np.empty((workers, longest), np.int16),
            part=np.empty((workers, 256), np.float32),
            ones=np.ones(64, np.float32),
            counter=np.zeros(1, np.int64),
        )

    def _layer(self, number: int, block: Block, source: list[CrossKV] | None, styles: list[Tensor] | None) -> np.ndarray:
        row = np.zeros(decode_step.COLUMNS, np.int64)
        for place, norm in (
            (decode_step.NORM, block.norm1),
            (decode_step.NORM_CROSS, block.norm_cross),
            (decode_step.NORM_MLP, block.norm2),
        ):
            if norm is not None:
                row[place : place + 2] = self._pointers((norm.weight.float(), norm.bias.float()))
        width = block.up.in_features // self.heads
        row[decode_step.MEMORY : decode_step.MEMORY + 4] = self._pointers(_memory(self.batch * self.heads, self.room, width))
        if block.cross is not None and source is not None:
            packed = _kept(source[number], self.batch)
            row[decode_step.SOURCE : decode_step.SOURCE + 4] = self._pointers(packed)
            row[decode_step.CROSS_Q : decode_step.CROSS_Q + 8] = _numbers(block.cross.q)
            row[decode_step.CROSS_OUT : decode_step.CROSS_OUT + 8] = _numbers(block.cross.out)
        if styles is not None:
            style = styles[number].float().contiguous()
            self.kept.append(style)
            row[decode_step.STYLE] = style.data_ptr()
        parts = {
            decode_step.QKV: block.attention.qkv,
            decode_step.OUT: block.attention.out,
            decode_step.UP: block.up,
            decode_step.DOWN: block.down,
        }
        for place, part in parts.items():
            row[place : place + 8] = _numbers(part)
        return row

    def _pointers(self, tensors: tuple[Tensor, ...]) -> list[int]:
        self.kept.append(tensors)
        return [x.data_ptr() for x in tensors]

    def prefill(self, x: Float[Tensor, "b n d"], at: int) -> None:
        """Positions from `at` on, of which nothing is asked."""
        each = max(1, ROWS // self.batch)
        for first in range(0, x.shape[1], each):
            self._walk(x[:, first : first + each], at + first, np.empty((0, 0), np.float32))

    def step(self, x: Float[Tensor, "b 1 d"], at: int) -> Float[Tensor, "b v"]:
        """What the head makes of the position `at`."""
        self._walk(x, at, self.logits)
        return torch.from_numpy(self.logits)

    def _walk(self, x: Tensor, at: int, logits: np.ndarray) -> None:
        n = x.shape[1]
        assert at + n <= self.room, f"positions up to {at + n} do not fit a memory of {self.room}"
        rows = x.reshape(self.batch * n, -1).float().contiguous()
        rows = (rows.clone() if rows.data_ptr() == x.data_ptr() else rows).numpy()
        position = np.tile(np.arange(at, at + n, dtype=np.int64), self.batch)
        cos = sin = _none(2)
        if self.rotation is not None:
            cos, sin = (
                part[:, 0, at : at + n].expand(self.batch, -1, -1).reshape(len(rows), -1).contiguous().numpy()
                for part in self.rotation
            )
        arguments = (self.turn, self.model, decode_step.StepRows(rows, position, cos, sin), self.work, logits)
        running = []
        try:
            for worker in range(1, self.workers):
                running.append(self.crew.submit(decode_step.decode_step, (worker, self.workers), *arguments))  # type: ignore[union-attr]
            self.turn = decode_step.decode_step((0, self.workers), *arguments)
        except BaseException:  # such as Ctrl-C before this thread has begun; the others wait for it
            self.work.counter[0] = OVER
            raise
        for other in running:
            other.result()

    def close(self) -> None:
        """Ends the threads."""
        if self.crew is not None:
            self.crew.shutdown()


def _numbers(linear: nn.Module) -> list[int]:
    assert isinstance(linear, QuantizedLinear)
    return linear.packed_weight.descriptor()


def _none(dimensions: int) -> np.ndarray:
    return np.empty((0,) * dimensions, np.float32)


def _biased(mask: Tensor) -> Tensor:
    """A bias of logits for a mask, a bias as it is."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask.float().contiguous()


def _memory(heads: int, positions: int, width: int) -> tuple[Tensor, ...]:
    """Empty keys, their scales, values and theirs."""
    each, pairs = decode_step.value_tile_shape(width, positions)
    return (
        torch.empty(heads, positions // 64, (width + 1) // 2, 64, 2, dtype=torch.int8),
        torch.empty(heads, positions),
        torch.empty(heads, -(-width // each), pairs, each, 2, dtype=torch.int8),
        torch.empty(heads, positions),
    )


def _kept(source: CrossKV, batch: int) -> tuple[Tensor, ...]:
    """Keys and values of a condition in the same form."""
    keys, values = (x.expand(batch, -1, -1, -1).flatten(0, 1).float() for x in source[:2])
    positions, width = -(-keys.shape[1] // BLOCK) * BLOCK, keys.shape[2]
    memory = _memory(len(keys), positions, width)
    keys, values = (F.pad(x, (0, 0, 0, positions - x.shape[1])) for x in (keys, values))
    for x, scale in ((keys, memory[1]), (values, memory[3])):
        scale.copy_(x.abs().amax(-1) / 127)
    whole = (keys / memory[1].clamp(min=1e-30)[..., None]).round()
    memory[0].copy_(F.pad(whole, (0, width % 2)).view(len(keys), -1, 64, memory[0].shape[2], 2).transpose(2, 3))
    whole = (values / memory[3].clamp(min=1e-30)[..., None]).round()
    each, tiles = memory[2].shape[3], memory[2].shape[1]
    whole = F.pad(whole, (0, tiles * each - width)).view(len(values), positions // 2, 2, tiles, each)
    memory[2].copy_(whole.permute(0, 3, 1, 4, 2))
    return memory
