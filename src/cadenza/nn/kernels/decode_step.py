"""One decoding step of a transformer with quantised weights: all layers in one compiled call, made by several threads.

Every row is a position of a sequence. The inputs of a matrix are rounded to int16, keys and values are stored in int8
in the tiles of `simd`, and everything else is float32. The results of a row do not depend on the other rows. Threads
split the tiles of a matrix and the attention heads, and synchronise after each.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from cadenza.nn.kernels.elementwise import (
    FAST,
    apply_rotary_row,
    exp,
    gelu,
    inlined,
    layer_norm_row,
    quantize_int8,
    quantize_int16,
)
from cadenza.nn.kernels.simd import int4_tile_kernel, int8_tile_kernel, read_float, wait_for_workers, write_byte, write_float


class QuantizedRows(NamedTuple):
    """Rows to multiply with a matrix."""

    numbers: np.ndarray  # int16 [rows, inputs]
    scale: np.ndarray  # float32 [rows], the value of 1; below 0: the row is skipped
    sums: np.ndarray  # int32 [rows, groups], of the inputs of each group


def allocate_rows(rows: int, inputs: int, groups: int) -> QuantizedRows:
    """Allocate rows of at most `inputs` numbers in at most `groups` groups."""
    numbers = np.empty((rows, inputs + inputs % 2), np.int16)
    return QuantizedRows(numbers, np.empty(rows, np.float32), np.empty((rows, max(1, groups)), np.int32))


class HeadKV(NamedTuple):
    """Addresses of the keys and values of one head of one sequence, and the shape of the tiles of values."""

    keys: int
    key_scales: int
    values: int
    value_scales: int
    tile_outputs: int
    position_pairs: int


class WorkerScratch(NamedTuple):
    """Buffers of one worker."""

    inputs: QuantizedRows  # for as many rows as a call may have
    row_buffer: np.ndarray  # float32 [widest]
    scores: np.ndarray  # float32 [positions]
    weights: np.ndarray  # int16 [positions], of attention
    part: np.ndarray  # float32 [256]
    ones: np.ndarray  # float32 [64]


class DecoderTables(NamedTuple):
    """A transformer, its head and the cache of a batch; empty arrays where an input is absent."""

    layers: np.ndarray  # int64 [depth, COLUMNS]
    last: np.ndarray  # int64 [2], addresses of the last norm
    head: np.ndarray  # int64 [8], descriptor of the matrix
    sizes: np.ndarray  # int64 [4]: heads, sequences, positions of the cache, token capacity of the source
    tokens: np.ndarray  # int64 [sequences], of the source, without trailing padding
    eps: np.float32
    source_bias: np.ndarray  # float32 [sequences, positions or 1, tokens], of cross-attention
    any_valid: np.ndarray  # uint8 [sequences, positions or 1], 0 where cross-attention contributes nothing


class StepRows(NamedTuple):
    """Inputs of a call: consecutive positions of each sequence."""

    x: np.ndarray  # float32 [rows, width]; overwritten with the output
    position: np.ndarray  # int64 [rows]
    cache_position: np.ndarray  # int64 [rows], index in the cache of its sequence; below 0 for padding, which is not stored
    cos: np.ndarray  # float32 [rows, width of a head]; empty without rotary positions
    sin: np.ndarray


# Columns of a layer's row of the table: two addresses for a norm, one for the adaLN style, four for keys and values,
# eight for the descriptor of a matrix.
NORM, NORM_CROSS, NORM_MLP, STYLE, CACHE, SOURCE = 0, 2, 4, 6, 8, 12
QKV, OUT, CROSS_Q, CROSS_OUT, UP, DOWN = 16, 24, 32, 40, 48, 56
COLUMNS = 64
PACKED, SCALE, OFFSET, BIAS, INPUTS, OUTPUTS, GROUPS = range(7)  # of a descriptor
PLAIN, ADD, GELU = 0, 1, 2  # a product is written, added to the output, or its GELU is written

_one8, _two8, _three8, _four8 = (int8_tile_kernel(rows, 4) for rows in (1, 2, 3, 4))
_one4, _two4, _three4, _four4 = (int4_tile_kernel(rows) for rows in (1, 2, 3, 4))
_narrow1, _narrow2, _narrow3 = (int8_tile_kernel(1, vectors) for vectors in (1, 2, 3))


@inlined
def _group_sums(row, linear, sums):
    """Sum the inputs of a row in each group of an int4 matrix."""
    groups = linear[GROUPS]
    if groups:
        each = linear[INPUTS] // groups
        for g in range(groups):
            total = np.int32(0)
            for i in range(g * each, (g + 1) * each):
                total += np.int32(row[i])
            sums[g] = total


@inlined
def quantize_rows(x, linear, inputs):
    """Round the rows to int16 for a matrix."""
    for r in range(inputs.scale.shape[0]):
        inputs.scale[r] = quantize_int16(x[r], linear[INPUTS], inputs.numbers[r])
        _group_sums(inputs.numbers[r], linear, inputs.sums[r])


@inlined
def _quantize_normed(x, norm, eps, style, linear, inputs, row_buffer):
    """Round the layer norms of the rows; `style` is the address of the first scale and shift, and the rows of each."""
    rows, dim = x.shape
    for r in range(rows):
        layer_norm_row(x[r], norm, eps, style[0] + (r // style[1]) * dim * 16 if style[0] else 0, row_buffer)
        inputs.scale[r] = quantize_int16(row_buffer, dim, inputs.numbers[r])
        _group_sums(inputs.numbers[r], linear, inputs.sums[r])


@njit(error_model="numpy", forceinline=True)  # without fastmath: contraction would depend on the number of rows in a call
def matmul_tiles(linear, inputs, share, part, out, mode):
    """Multiply the rows with a worker's share (worker, workers) of a matrix, into `out` [rows, outputs] by `mode`."""
    rows, outputs, groups = inputs.scale.shape[0], linear[OUTPUTS], linear[GROUPS]
    tiles, pairs = (outputs + 63) // 64, (linear[INPUTS] + 1) // 2
    for tile in range(tiles * share[0] // share[1], tiles * (share[0] + 1) // share[1]):
        for row in range(0, rows, 4):
            count = min(4, rows - row)
            if groups:
                _tile4(linear, tile, groups, inputs, row, count, part)
            else:
                _tile8(linear, tile, pairs, inputs, row, count, part)
            for i in range(count):
                if inputs.scale[row + i] >= 0:
                    _store_tile(linear, part[i * 64 : i * 64 + 64], inputs.scale[row + i], out[row + i], tile * 64, mode)


@njit(error_model="numpy", forceinline=True)
def _tile8(linear, tile, pairs, inputs, row, count, part):
    stride, to = inputs.numbers.strides[0], part.ctypes.data
    x = inputs.numbers.ctypes.data + row * stride
    w, s = linear[PACKED] + tile * pairs * 128, linear[SCALE] + tile * 256
    if count == 1:
        _one8(w, s, pairs, x, stride, to)
    elif count == 2:
        _two8(w, s, pairs, x, stride, to)
    elif count == 3:
        _three8(w, s, pairs, x, stride, to)
    else:
        _four8(w, s, pairs, x, stride, to)


@njit(error_model="numpy", forceinline=True)
def _tile4(linear, tile, groups, inputs, row, count, part):
    stride, sums_stride, to = inputs.numbers.strides[0], inputs.sums.strides[0], part.ctypes.data
    x, total = inputs.numbers.ctypes.data + row * stride, inputs.sums.ctypes.data + row * sums_stride
    quads, first = linear[INPUTS] // groups // 4, tile * groups
    w, s, o = linear[PACKED] + first * quads * 128, linear[SCALE] + first * 128, linear[OFFSET] + first * 128
    if count == 1:
        _one4(w, s, o, groups, quads, x, stride, total, sums_stride, to)
    elif count == 2:
        _two4(w, s, o, groups, quads, x, stride, total, sums_stride, to)
    elif count == 3:
        _three4(w, s, o, groups, quads, x, stride, total, sums_stride, to)
    else:
        _four4(w, s, o, groups, quads, x, stride, total, sums_stride, to)


@njit(error_model="numpy", forceinline=True)
def _store_tile(linear, values, factor, out, first, mode):
    """Write one tile of one row to `out` by `mode`."""
    width = min(64, linear[OUTPUTS] - first)
    target = out[first : first + width]
    if linear[BIAS]:
        for j in range(width):
            values[j] = values[j] * factor + read_float(linear[BIAS], first + j)
    else:
        for j in range(width):
            values[j] *= factor
    if mode == PLAIN:
        for j in range(width):
            target[j] = values[j]
    elif mode == ADD:
        for j in range(width):
            target[j] += values[j]
    else:
        for j in range(width):
            target[j] = gelu(values[j])


@inlined
def _store_kv(key, value, numbers, kv, at):
    """Quantise the key and the value of a head and store them at a position."""
    width = key.shape[0]
    write_float(kv.key_scales, at, quantize_int8(key, width, numbers))
    base = kv.keys + (at // 64) * ((width + 1) // 2) * 128 + (at % 64) * 2
    for i in range(width):
        write_byte(base + (i // 2) * 128, i % 2, np.int8(numbers[i]))
    if width % 2:
        write_byte(base + (width // 2) * 128, 1, np.int8(0))
    write_float(kv.value_scales, at, quantize_int8(value, width, numbers))
    for i in range(width):
        tile, j = i // kv.tile_outputs, i % kv.tile_outputs
        write_byte(kv.values + (tile * kv.position_pairs + at // 2) * kv.tile_outputs * 2, j * 2 + at % 2, np.int8(numbers[i]))


@inlined
def _attend(q, numbers, kv, n, bias, scratch):
    """Replace a query by the attention over `n` positions; `bias` is an address or 0. All -inf gives 0."""
    width, scores = q.shape[0], scratch.scores
    factor = quantize_int16(q, width, numbers) / np.float32(np.sqrt(np.float32(width)))
    half, x, to = (width + 1) // 2, numbers.ctypes.data, scores.ctypes.data
    for tile in range((n + 63) // 64):
        _one8(kv.keys + tile * half * 128, kv.key_scales + tile * 256, half, x, 0, to + tile * 256)
    top = np.float32(-np.inf)
    if bias:
        for i in range(n):
            scores[i] = scores[i] * factor + read_float(bias, i)
    else:
        for i in range(n):
            scores[i] *= factor
    for i in range(n):
        top = max(top, scores[i])
    if top == np.float32(-np.inf):
        q[:] = 0
        return
    total = np.float32(0)
    for i in range(n):
        p = exp(scores[i] - top) if scores[i] > np.float32(-1e30) else np.float32(0)
        total += p
        scores[i] = p * read_float(kv.value_scales, i)
    factor = quantize_int16(scores, n, scratch.weights) / total
    pairs, x, ones, to = (n + 1) // 2, scratch.weights.ctypes.data, scratch.ones.ctypes.data, scratch.part.ctypes.data
    for tile in range((width + kv.tile_outputs - 1) // kv.tile_outputs):
        values = kv.values + tile * kv.position_pairs * kv.tile_outputs * 2
        if kv.tile_outputs == 64:
            _one8(values, ones, pairs, x, 0, to)
        elif kv.tile_outputs == 48:
            _narrow3(values, ones, pairs, x, 0, to)
        elif kv.tile_outputs == 32:
            _narrow2(values, ones, pairs, x, 0, to)
        else:
            _narrow1(values, ones, pairs, x, 0, to)
        for i in range(tile * kv.tile_outputs, min((tile + 1) * kv.tile_outputs, width)):
            q[i] = scratch.part[i - tile * kv.tile_outputs] * factor


@inlined
def value_tile_shape(width, positions):
    """Return the outputs of a tile of values, and its pairs of positions."""
    tiles = (width + 63) // 64
    return (width + tiles * 16 - 1) // (tiles * 16) * 16, positions // 2


@inlined
def _head_kv(addresses, index, positions, width):
    """Return the keys and values of head `index` of all sequences, from the addresses of the first."""
    outputs, pairs = value_tile_shape(width, positions)
    return HeadKV(
        addresses[0] + index * (positions // 64) * ((width + 1) // 2) * 128,
        addresses[1] + index * positions * 4,
        addresses[2] + index * pairs * ((width + outputs - 1) // outputs * outputs) * 2,
        addresses[3] + index * positions * 4,
        outputs,
        pairs,
    )


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def transformer_step(share, turn, counter, model, rows, y, scratch, logits):
    """Run the rows through all layers in place, and the head into `logits` unless it is empty.

    `share` is (worker, workers), `turn` the barrier value before; the value after is returned. All workers share
    `counter`, int64 [1], the arrivals at the barrier, and `y`, float32 [rows, widest]; `scratch` belongs to this worker.
    """
    heads, sequences, positions, token_capacity = model.sizes[0], model.sizes[1], model.sizes[2], model.sizes[3]
    x, eps, workers, barrier = rows.x, model.eps, share[1], counter.ctypes.data
    width, rows_each = x.shape[1] // heads, x.shape[0] // sequences
    dim = heads * width
    inputs = QuantizedRows(scratch.inputs.numbers, scratch.inputs.scale[: x.shape[0]], scratch.inputs.sums)
    part, row_buffer = scratch.part, scratch.row_buffer
    heads_of_worker = range(sequences * heads * share[0] // workers, sequences * heads * (share[0] + 1) // workers)
    for number in range(model.layers.shape[0]):
        layer = model.layers[number]
        qkv, out, cross_q, cross_out = layer[QKV:OUT], layer[OUT:CROSS_Q], layer[CROSS_Q:CROSS_OUT], layer[CROSS_OUT:UP]
        up, down, style = layer[UP:DOWN], layer[DOWN:COLUMNS], layer[STYLE]
        _quantize_normed(x, layer[NORM:NORM_CROSS], eps, (style, rows_each), qkv, inputs, row_buffer)
        matmul_tiles(qkv, inputs, share, part, y, PLAIN)
        turn = wait_for_workers(barrier, turn, workers)
        for index in heads_of_worker:
            s, h = index // heads, index % heads
            kv = _head_kv(layer[CACHE:SOURCE], index, positions, width)
            for r in range(s * rows_each, (s + 1) * rows_each):
                q, k = y[r, h * width : (h + 1) * width], y[r, dim + h * width : dim + (h + 1) * width]
                v = y[r, 2 * dim + h * width : 2 * dim + (h + 1) * width]
                if rows.cache_position[r] < 0:
                    q[:] = 0
                    continue
                if rows.cos.shape[0]:
                    apply_rotary_row(q, rows.cos[r], rows.sin[r], row_buffer)
                    apply_rotary_row(k, rows.cos[r], rows.sin[r], row_buffer)
                _store_kv(k, v, inputs.numbers[0], kv, rows.cache_position[r])
                _attend(q, inputs.numbers[0], kv, rows.cache_position[r] + 1, 0, scratch)
        turn = wait_for_workers(barrier, turn, workers)
        quantize_rows(y, out, inputs)
        matmul_tiles(out, inputs, share, part, x, ADD)
        turn = wait_for_workers(barrier, turn, workers)
        if layer[SOURCE]:
            _quantize_normed(x, layer[NORM_CROSS:NORM_MLP], eps, (0, rows_each), cross_q, inputs, row_buffer)
            matmul_tiles(cross_q, inputs, share, part, y, PLAIN)
            turn = wait_for_workers(barrier, turn, workers)
            for index in heads_of_worker:
                s, h = index // heads, index % heads
                kv = _head_kv(layer[SOURCE:QKV], index, token_capacity, width)
                for r in range(s * rows_each, (s + 1) * rows_each):
                    bias = 0
                    if model.source_bias.shape[0]:
                        bias_row = min(rows.position[r], model.source_bias.shape[1] - 1)
                        strides = model.source_bias.strides
                        bias = model.source_bias.ctypes.data + s * strides[0] + bias_row * strides[1]
                    _attend(y[r, h * width : (h + 1) * width], inputs.numbers[0], kv, model.tokens[s], bias, scratch)
            turn = wait_for_workers(barrier, turn, workers)
            quantize_rows(y, cross_out, inputs)
            for r in range(x.shape[0]):
                if model.any_valid.shape[0]:
                    column = min(rows.position[r], model.any_valid.shape[1] - 1)
                    if not model.any_valid[r // rows_each, column]:
                        inputs.scale[r] = -1
            matmul_tiles(cross_out, inputs, share, part, x, ADD)
            turn = wait_for_workers(barrier, turn, workers)
        _quantize_normed(x, layer[NORM_MLP:STYLE], eps, (style + dim * 8 if style else 0, rows_each), up, inputs, row_buffer)
        matmul_tiles(up, inputs, share, part, y, GELU)
        turn = wait_for_workers(barrier, turn, workers)
        quantize_rows(y, down, inputs)
        matmul_tiles(down, inputs, share, part, x, ADD)
        turn = wait_for_workers(barrier, turn, workers)
    if logits.shape[0]:
        _quantize_normed(x, model.last, eps, (0, rows_each), model.head, inputs, row_buffer)
        matmul_tiles(model.head, inputs, share, part, logits, PLAIN)
    return wait_for_workers(barrier, turn, workers)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def linear_forward(linear, x, inputs, part, out):
    """Multiply the rows of `x` with one matrix."""
    quantize_rows(x, linear, inputs)
    matmul_tiles(linear, inputs, (0, 1), part, out, PLAIN)
