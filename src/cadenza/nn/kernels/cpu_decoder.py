"""Decoding with a quantised transformer on CPU threads, with keys and values in 8 bits."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.nn.attention import CrossKV
from cadenza.nn.conditioning import ConditioningInputs
from cadenza.nn.kernels import decode_step
from cadenza.nn.transformer import Block, Transformer
from cadenza.nn.weight_quantization import QuantizedLinear

MAX_ROWS = 32  # positions of all sequences in one call
TILE_POSITIONS = 64  # positions in a tile of keys
RELEASE_ALL = 2**62  # barrier value that releases every waiting worker
MIN_BYTES = 2**26  # of weights, above which several threads are faster than one


class QuantizedDecoder:
    """Keys and values of a batch of sequences, and the threads that extend them; `close` stops the threads."""

    def __init__(
        self, transformer: Transformer, head: QuantizedLinear, conditions: ConditioningInputs, *, sequences: int, positions: int
    ) -> None:
        """`conditions` cover all `positions` of each of the `sequences`."""
        self.batch, self.heads = sequences, transformer.heads
        size = sum(x.nbytes for x in transformer.buffers())
        self.workers = torch.get_num_threads() if size >= MIN_BYTES else 1
        self.capacity, self.rotation = _round_up(positions), conditions.rotation
        valid = conditions.valid
        self.cache_position = None if valid is None else torch.where(valid, valid.cumsum(1) - 1, -1)
        self.references: list[Any] = [transformer, head]  # tensors that the tables point to
        blocks: list[Block] = list(transformer.blocks)  # type: ignore[arg-type]
        source, tokens, token_capacity = conditions.cross_kv, torch.zeros(self.batch, dtype=torch.long), 0
        source_bias, any_valid = _empty_float(3), np.empty((0, 0), np.uint8)
        if source is not None:
            tokens, token_capacity = _attended_tokens(source[0]).expand(self.batch), _round_up(source[0].keys.shape[2])
            mask, valid_rows = source[0].reach
            if mask is not None:
                source_bias = _as_bias(mask.expand(self.batch, -1, -1, -1)[:, 0]).numpy()
            if valid_rows is not None:
                any_valid = valid_rows.expand(self.batch, -1, -1)[..., 0].to(torch.uint8).contiguous().numpy()
        self.model = decode_step.DecoderTables(
            np.stack([self._layer_row(i, block, conditions) for i, block in enumerate(blocks)]),
            np.array(self._pointers((transformer.norm.weight.float(), transformer.norm.bias.float())), np.int64),
            np.array(head.packed_weight.descriptor(), np.int64),
            np.array([self.heads, self.batch, self.capacity, token_capacity], np.int64),
            tokens.contiguous().numpy(),
            np.float32(transformer.norm.eps),
            source_bias,
            any_valid,
        )
        self.logits, self.turn = np.empty((self.batch, head.out_features), np.float32), 0
        layers = [part for part in transformer.modules() if isinstance(part, QuantizedLinear)]
        matrices = [*layers, head]
        widest, groups = max(part.in_features for part in matrices), max(part.groups for part in matrices)
        rows, outputs = max(MAX_ROWS, self.batch), max(part.out_features for part in layers)
        self.y, self.counter = np.empty((rows, max(widest, outputs)), np.float32), np.zeros(1, np.int64)
        longest = max(self.capacity, token_capacity)
        self.scratch = [_allocate_scratch(rows, widest, groups, longest) for _ in range(self.workers)]
        self.pool = ThreadPoolExecutor(self.workers - 1, "decode") if self.workers > 1 else None

    def _layer_row(self, number: int, block: Block, conditions: ConditioningInputs) -> np.ndarray:
        """Return a layer's row of the table: addresses of its tensors, and descriptors of its matrices."""
        row = np.zeros(decode_step.COLUMNS, np.int64)
        norms = {decode_step.NORM: block.norm1, decode_step.NORM_CROSS: block.norm_cross, decode_step.NORM_MLP: block.norm2}
        for column, norm in norms.items():
            if norm is not None:
                row[column : column + 2] = self._pointers((norm.weight.float(), norm.bias.float()))
        matrices = {
            decode_step.QKV: block.attention.qkv,
            decode_step.OUT: block.attention.out,
            decode_step.UP: block.up,
            decode_step.DOWN: block.down,
        }
        caches = {decode_step.CACHE: _empty_cache(self.batch * self.heads, self.capacity, block.up.in_features // self.heads)}
        if block.cross is not None and conditions.cross_kv is not None:
            caches[decode_step.SOURCE] = _quantized_kv(conditions.cross_kv[number], self.batch)
            matrices |= {decode_step.CROSS_Q: block.cross.q, decode_step.CROSS_OUT: block.cross.out}
        for column, cache in caches.items():
            row[column : column + 4] = self._pointers(cache)
        if conditions.adaln is not None:
            row[decode_step.STYLE] = self._pointers((conditions.adaln[number].float().contiguous(),))[0]
        for column, linear in matrices.items():
            assert isinstance(linear, QuantizedLinear)
            row[column : column + 8] = linear.packed_weight.descriptor()
        return row

    def _pointers(self, tensors: tuple[Tensor, ...]) -> list[int]:
        self.references.append(tensors)
        return [x.data_ptr() for x in tensors]

    def prefill(self, x: Float[Tensor, "b n d"], position: int) -> None:
        """Feed the n positions from `position` on, without logits."""
        count = max(1, MAX_ROWS // self.batch)
        for first in range(0, x.shape[1], count):
            self._run(x[:, first : first + count], position + first, np.empty((0, 0), np.float32))

    def step(self, x: Float[Tensor, "b 1 d"], position: int) -> Float[Tensor, "b v"]:
        """Feed one position and return its logits, which are valid until the next call."""
        self._run(x, position, self.logits)
        return torch.from_numpy(self.logits)

    def _run(self, x: Tensor, first: int, logits: np.ndarray) -> None:
        n = x.shape[1]
        assert first + n <= self.capacity, f"positions up to {first + n} do not fit a cache of {self.capacity}"
        rows = x.reshape(self.batch * n, -1).float().contiguous()
        rows = (rows.clone() if rows.data_ptr() == x.data_ptr() else rows).numpy()
        position = np.tile(np.arange(first, first + n, dtype=np.int64), self.batch)
        cached = position
        if self.cache_position is not None:
            cached = self.cache_position[:, first : first + n].reshape(-1).contiguous().numpy()
        cos = sin = _empty_float(2)
        if self.rotation is not None:
            cos, sin = (
                part[:, 0, first : first + n].expand(self.batch, -1, -1).reshape(len(rows), -1).contiguous().numpy()
                for part in self.rotation
            )
        shared = (self.turn, self.counter, self.model, decode_step.StepRows(rows, position, cached, cos, sin), self.y)
        running = []
        try:
            for i in range(1, self.workers):
                arguments = ((i, self.workers), *shared, self.scratch[i], logits)
                running.append(self.pool.submit(decode_step.transformer_step, *arguments))  # type: ignore[union-attr]
            self.turn = decode_step.transformer_step((0, self.workers), *shared, self.scratch[0], logits)
        except BaseException:  # such as Ctrl-C before this thread has started, while the workers wait for it
            self.counter[0] = RELEASE_ALL
            raise
        for future in running:
            future.result()

    def close(self) -> None:
        """Stop the threads."""
        if self.pool is not None:
            self.pool.shutdown()


def _allocate_scratch(rows: int, widest: int, groups: int, longest: int) -> decode_step.WorkerScratch:
    return decode_step.WorkerScratch(
        decode_step.allocate_rows(rows, widest, groups),
        row_buffer=np.empty(widest, np.float32),
        scores=np.empty(longest, np.float32),
        weights=np.empty(longest, np.int16),
        part=np.empty(256, np.float32),
        ones=np.ones(64, np.float32),
    )


def _round_up(positions: int) -> int:
    return -(-positions // TILE_POSITIONS) * TILE_POSITIONS


def _empty_float(dimensions: int) -> np.ndarray:
    return np.empty((0,) * dimensions, np.float32)


def _attended_tokens(source: CrossKV) -> Int[Tensor, " #b"]:
    """Return the tokens of each sequence up to the last that it attends to, at least 1; padding after them is not read."""
    mask, any_valid = source.reach
    tokens = source.keys.shape[2]
    if mask is None:
        return torch.tensor([tokens])
    attended = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -torch.inf
    attended = (attended if any_valid is None else attended & any_valid).any(1)
    return (attended * torch.arange(1, tokens + 1)).amax(1).clamp(min=1)


def _as_bias(mask: Bool[Tensor, "..."] | Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return 0 and -inf for a mask; a bias is only cast to float32."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask.float().contiguous()


def _empty_cache(heads: int, positions: int, width: int) -> tuple[Tensor, ...]:
    """Return uninitialised keys, key scales, values and value scales, in the tiles of `simd`."""
    outputs, pairs = decode_step.value_tile_shape(width, positions)
    return (
        torch.empty(heads, positions // 64, (width + 1) // 2, 64, 2, dtype=torch.int8),
        torch.empty(heads, positions),
        torch.empty(heads, -(-width // outputs), pairs, outputs, 2, dtype=torch.int8),
        torch.empty(heads, positions),
    )


def _quantized_kv(source: CrossKV, batch: int) -> tuple[Tensor, ...]:
    """Return the keys and values of a condition in the form of `_empty_cache`."""
    keys, values = (x.expand(batch, -1, -1, -1).flatten(0, 1).float() for x in source[:2])
    positions, width = _round_up(keys.shape[1]), keys.shape[2]
    packed_keys, key_scales, packed_values, value_scales = cache = _empty_cache(len(keys), positions, width)
    keys, values = (F.pad(x, (0, 0, 0, positions - x.shape[1])) for x in (keys, values))
    for x, scale in ((keys, key_scales), (values, value_scales)):
        scale.copy_(x.abs().amax(-1) / 127)
    numbers = (keys / key_scales.clamp(min=1e-30)[..., None]).round()
    packed_keys.copy_(F.pad(numbers, (0, width % 2)).view(len(keys), -1, 64, packed_keys.shape[2], 2).transpose(2, 3))
    numbers = (values / value_scales.clamp(min=1e-30)[..., None]).round()
    outputs, tiles = packed_values.shape[3], packed_values.shape[1]
    numbers = F.pad(numbers, (0, tiles * outputs - width)).view(len(values), positions // 2, 2, tiles, outputs)
    packed_values.copy_(numbers.permute(0, 3, 1, 4, 2))
    return cache
