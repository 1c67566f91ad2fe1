"""One step of a transformer with quantised weights, all layers in one call that several threads make together.

Every row is a position of a sequence. Its inputs to a matrix are rounded to 16 bits, its keys and values are kept in
8, in the tiles of `simd`; everything else is float32. A row's numbers do not depend on the other rows. Threads split
the tiles of a matrix, and the heads, and wait for each other in between.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from cadenza.nn.kernels.elementwise import FAST, apply_rotary_row, exp, gelu, layer_norm_row, quantize_int8, quantize_int16
from cadenza.nn.kernels.simd import (
    atomic_increment,
    atomic_load,
    cpu_pause,
    int4_tile_kernel,
    int8_tile_kernel,
    read_float,
    thread_yield,
    write_byte,
    write_float,
)


class QuantizedRows(NamedTuple):
    """Rows that a matrix reads: numbers of 16 bits, what one stands for, and their sums in each group of inputs."""

    numbers: np.ndarray  # int16 [rows, inputs]
    scale: np.ndarray  # float32 [rows]; below 0: the row is left out
    sums: np.ndarray  # int32 [rows, groups]


class HeadKV(NamedTuple):
    """Keys and values of one head of one sequence, by their addresses, and the shape of the values' tiles."""

    keys: int
    key_scales: int
    values: int
    value_scales: int
    each: int  # outputs of a tile of values
    pairs: int  # of positions in it


class WorkerScratch(NamedTuple):
    """What a worker computes on."""

    room: np.ndarray  # float32 [widest]
    scores: np.ndarray  # float32 [positions]
    probable: np.ndarray  # int16 [positions]
    part: np.ndarray  # float32 [256]
    ones: np.ndarray  # float32 [64]


class DecoderTables(NamedTuple):
    """A transformer, its head and the memory of a batch."""

    layers: np.ndarray  # int64 [depth, COLUMNS]
    last: np.ndarray  # int64 [2], of the last norm
    head: np.ndarray  # int64, as of any matrix
    sizes: np.ndarray  # int64: heads, sequences, positions of memory, tokens of the source and the room for them
    eps: np.float32
    bias: np.ndarray  # float32 [sequences, positions], of attention to positions before; of no size where none
    source_bias: np.ndarray  # float32 [sequences, positions or 1, tokens], likewise
    any_valid: np.ndarray  # uint8 [sequences, positions or 1], 0 where the source contributes nothing, likewise


class StepRows(NamedTuple):
    """What is fed: consecutive positions of each sequence."""

    x: np.ndarray  # float32 [rows, width]; becomes what comes out
    position: np.ndarray  # int64 [rows]
    cos: np.ndarray  # float32 [rows, width of a head], of no size where positions do not turn
    sin: np.ndarray


class Workspace(NamedTuple):
    """Room for all workers: that of each in its place, and what they share."""

    y: np.ndarray  # float32 [rows, widest]
    numbers: np.ndarray  # int16 [workers, rows, widest]
    scale: np.ndarray  # float32 [workers, rows]
    sums: np.ndarray  # int32 [workers, rows, groups]
    room: np.ndarray
    scores: np.ndarray
    probable: np.ndarray
    part: np.ndarray
    ones: np.ndarray  # of all
    counter: np.ndarray  # int64 [1], how often workers have met


# Where things stand in a layer's row of the table: addresses, or numbers of a matrix.
NORM, NORM_CROSS, NORM_MLP, STYLE, MEMORY, SOURCE = 0, 2, 4, 6, 8, 12
QKV, OUT, CROSS_Q, CROSS_OUT, UP, DOWN = 16, 24, 32, 40, 48, 56
PACKED, SCALE, OFFSET, BIAS, INPUTS, OUTPUTS, GROUPS = range(7)
COLUMNS = 64
PLAIN, ADD, GELU = 0, 1, 2  # what becomes of a product: written, added to what is there, or its GELU written

_ROWS8 = tuple(int8_tile_kernel(rows, 4) for rows in (1, 2, 3, 4))
_ROWS4 = tuple(int4_tile_kernel(rows) for rows in (1, 2, 3, 4))
_one8, _two8, _three8, _four8 = _ROWS8
_one4, _two4, _three4, _four4 = _ROWS4
_narrow1, _narrow2, _narrow3 = (int8_tile_kernel(1, vectors) for vectors in (1, 2, 3))


@njit(fastmath=FAST, error_model="numpy")
def _summed(row, linear, sums):
    """The sums of each group of the inputs of a row, for a matrix of int4."""
    groups = linear[GROUPS]
    if groups:
        each = linear[INPUTS] // groups
        for g in range(groups):
            total = np.int32(0)
            for i in range(g * each, (g + 1) * each):
                total += np.int32(row[i])
            sums[g] = total


@njit(fastmath=FAST, error_model="numpy")
def quantize_rows(x, linear, inputs):
    """Rounds the rows that a matrix is about to read."""
    for r in range(inputs.scale.shape[0]):
        inputs.scale[r] = quantize_int16(x[r], linear[INPUTS], inputs.numbers[r])
        _summed(inputs.numbers[r], linear, inputs.sums[r])


@njit(fastmath=FAST, error_model="numpy")
def _taken_normed(x, norm, eps, style, linear, inputs, room):
    """The same of their norms; `style`: where what scales and shifts the first sequence lies, and how many rows have one."""
    rows, dim = x.shape
    for r in range(rows):
        layer_norm_row(x[r], norm, eps, style[0] + (r // style[1]) * dim * 16 if style[0] else 0, room)
        inputs.scale[r] = quantize_int16(room, dim, inputs.numbers[r])
        _summed(inputs.numbers[r], linear, inputs.sums[r])


@njit(error_model="numpy")  # nothing is contracted, as that would hang on how many rows are computed together
def matmul_tiles(linear, inputs, share, part, out, how):
    """A worker's share, (worker, workers), of the rows times a matrix; `how` they get into `out` [rows, outputs]."""
    rows, outputs, groups = inputs.scale.shape[0], linear[OUTPUTS], linear[GROUPS]
    tiles, pairs = (outputs + 63) // 64, (linear[INPUTS] + 1) // 2
    for tile in range(tiles * share[0] // share[1], tiles * (share[0] + 1) // share[1]):
        for row in range(0, rows, 4):
            many = min(4, rows - row)
            if groups:
                _tile4(linear, tile, groups, inputs, row, many, part)
            else:
                _tile8(linear, tile, pairs, inputs, row, many, part)
            for i in range(many):
                if inputs.scale[row + i] >= 0:
                    _written(linear, part[i * 64 : i * 64 + 64], inputs.scale[row + i], out[row + i], tile * 64, how)


@njit(error_model="numpy")
def _tile8(linear, tile, pairs, inputs, row, many, part):
    stride, to = inputs.numbers.strides[0], part.ctypes.data
    x = inputs.numbers.ctypes.data + row * stride
    w, s = linear[PACKED] + tile * pairs * 128, linear[SCALE] + tile * 256
    if many == 1:
        _one8(w, s, pairs, x, stride, to)
    elif many == 2:
        _two8(w, s, pairs, x, stride, to)
    elif many == 3:
        _three8(w, s, pairs, x, stride, to)
    else:
        _four8(w, s, pairs, x, stride, to)


@njit(error_model="numpy")
def _tile4(linear, tile, groups, inputs, row, many, part):
    quads, stride, summed, to = (
        linear[INPUTS] // groups // 4,
        inputs.numbers.strides[0],
        inputs.sums.strides[0],
        part.ctypes.data,
    )
    x, total = inputs.numbers.ctypes.data + row * stride, inputs.sums.ctypes.data + row * summed
    w, s, o = (
        linear[PACKED] + tile * groups * quads * 128,
        linear[SCALE] + tile * groups * 128,
        linear[OFFSET] + tile * groups * 128,
    )
    if many == 1:
        _one4(w, s, o, groups, quads, x, stride, total, summed, to)
    elif many == 2:
        _two4(w, s, o, groups, quads, x, stride, total, summed, to)
    elif many == 3:
        _three4(w, s, o, groups, quads, x, stride, total, summed, to)
    else:
        _four4(w, s, o, groups, quads, x, stride, total, summed, to)


@njit(error_model="numpy")
def _written(linear, got, factor, out, first, how):
    """Puts a tile of a row where it belongs."""
    width = min(64, linear[OUTPUTS] - first)
    target = out[first : first + width]
    if linear[BIAS]:
        for j in range(width):
            got[j] = got[j] * factor + read_float(linear[BIAS], first + j)
    else:
        for j in range(width):
            got[j] *= factor
    if how == PLAIN:
        for j in range(width):
            target[j] = got[j]
    elif how == ADD:
        for j in range(width):
            target[j] += got[j]
    else:
        for j in range(width):
            target[j] = gelu(got[j])


@njit(fastmath=FAST, error_model="numpy")
def _keep(key, value, numbers, kept, at):
    """Writes the key and the value of a head at a position."""
    width = key.shape[0]
    write_float(kept.key_scales, at, quantize_int8(key, numbers))
    base = kept.keys + (at // 64) * ((width + 1) // 2) * 128 + (at % 64) * 2
    for i in range(width):
        write_byte(base + (i // 2) * 128, i % 2, np.int8(numbers[i]))
    if width % 2:
        write_byte(base + (width // 2) * 128, 1, np.int8(0))
    write_float(kept.value_scales, at, quantize_int8(value, numbers))
    for i in range(width):
        tile, j = i // kept.each, i % kept.each
        write_byte(kept.values + (tile * kept.pairs + at // 2) * kept.each * 2, j * 2 + at % 2, np.int8(numbers[i]))


@njit(fastmath=FAST, error_model="numpy")
def _attended(q, numbers, kept, n, bias, desk):
    """Puts what a head makes of `n` positions where its query was; 0 where `bias`, at an address or 0, leaves none."""
    width, scores = q.shape[0], desk.scores
    factor = quantize_int16(q, width, numbers) / np.float32(np.sqrt(np.float32(width)))
    half, x, to = (width + 1) // 2, numbers.ctypes.data, scores.ctypes.data
    for tile in range((n + 63) // 64):
        _one8(kept.keys + tile * half * 128, kept.key_scales + tile * 256, half, x, 0, to + tile * 256)
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
        scores[i] = p * read_float(kept.value_scales, i)
    factor = quantize_int16(scores, n, desk.probable) / total
    pairs, x, ones, to = (n + 1) // 2, desk.probable.ctypes.data, desk.ones.ctypes.data, desk.part.ctypes.data
    for tile in range((width + kept.each - 1) // kept.each):
        values = kept.values + tile * kept.pairs * kept.each * 2
        if kept.each == 64:
            _one8(values, ones, pairs, x, 0, to)
        elif kept.each == 48:
            _narrow3(values, ones, pairs, x, 0, to)
        elif kept.each == 32:
            _narrow2(values, ones, pairs, x, 0, to)
        else:
            _narrow1(values, ones, pairs, x, 0, to)
        for i in range(tile * kept.each, min((tile + 1) * kept.each, width)):
            q[i] = desk.part[i - tile * kept.each] * factor


@njit(fastmath=FAST, error_model="numpy")
def _met(counter, turn, workers):
    """Waits until every worker has come here, and gives the turn they will next wait for."""
    turn += workers
    atomic_increment(counter)  # type: ignore[reportCallIssue]
    spins = 0
    while atomic_load(counter) < turn:
        cpu_pause()
        spins += 1
        if spins > 2000:
            thread_yield()
    return turn


@njit(fastmath=FAST, error_model="numpy")
def value_tile_shape(width, positions):
    """Outputs of a tile of values, and pairs of positions in it."""
    tiles = (width + 63) // 64
    return (width + tiles * 16 - 1) // (tiles * 16) * 16, positions // 2


@njit(fastmath=FAST, error_model="numpy")
def _kept(place, pair, positions, width):
    """The keys and values of a head of a sequence, among those whose addresses are in `place`."""
    each, pairs = value_tile_shape(width, positions)
    return HeadKV(
        place[0] + pair * (positions // 64) * ((width + 1) // 2) * 128,
        place[1] + pair * positions * 4,
        place[2] + pair * pairs * ((width + each - 1) // each * each) * 2,
        place[3] + pair * positions * 4,
        each,
        pairs,
    )


@njit(fastmath=FAST, error_model="numpy")
def _own(work, worker, rows):
    """A worker's part of the room."""
    inputs = QuantizedRows(work.numbers[worker], work.scale[worker][:rows], work.sums[worker])
    return inputs, WorkerScratch(work.room[worker], work.scores[worker], work.probable[worker], work.part[worker], work.ones)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def decode_step(share, turn, model, rows, work, logits):
    """Takes the rows through all layers, in place, and what the head makes of them to `logits` unless that has no size.

    `share` is (worker, workers), `turn` how often workers have met before; how often they have then is given back.
    """
    heads, sequences, positions = model.sizes[0], model.sizes[1], model.sizes[2]
    tokens, token_room = model.sizes[3], model.sizes[4]
    x, y, eps, workers = rows.x, work.y, model.eps, share[1]
    width, each = x.shape[1] // heads, x.shape[0] // sequences
    dim = heads * width
    inputs, desk = _own(work, share[0], x.shape[0])
    counter, part, room = work.counter.ctypes.data, desk.part, desk.room
    mine = range(sequences * heads * share[0] // workers, sequences * heads * (share[0] + 1) // workers)
    for number in range(model.layers.shape[0]):
        layer = model.layers[number]
        qkv, out, cross_q, cross_out = layer[QKV:OUT], layer[OUT:CROSS_Q], layer[CROSS_Q:CROSS_OUT], layer[CROSS_OUT:UP]
        up, down, style = layer[UP:DOWN], layer[DOWN:COLUMNS], layer[STYLE]
        _taken_normed(x, layer[NORM:NORM_CROSS], eps, (style, each), qkv, inputs, room)
        matmul_tiles(qkv, inputs, share, part, y, PLAIN)
        turn = _met(counter, turn, workers)
        for pair in mine:
            s, h = pair // heads, pair % heads
            kept = _kept(layer[MEMORY:SOURCE], pair, positions, width)
            seen = model.bias.ctypes.data + s * model.bias.strides[0] if model.bias.shape[0] else 0
            for r in range(s * each, (s + 1) * each):
                q, k = y[r, h * width : (h + 1) * width], y[r, dim + h * width : dim + (h + 1) * width]
                v = y[r, 2 * dim + h * width : 2 * dim + (h + 1) * width]
                if rows.cos.shape[0]:
                    apply_rotary_row(q, rows.cos[r], rows.sin[r], room)
                    apply_rotary_row(k, rows.cos[r], rows.sin[r], room)
                _keep(k, v, inputs.numbers[0], kept, rows.position[r])
                _attended(q, inputs.numbers[0], kept, rows.position[r] + 1, seen, desk)
        turn = _met(counter, turn, workers)
        quantize_rows(y, out, inputs)
        matmul_tiles(out, inputs, share, part, x, ADD)
        turn = _met(counter, turn, workers)
        if layer[SOURCE]:
            _taken_normed(x, layer[NORM_CROSS:NORM_MLP], eps, (0, each), cross_q, inputs, room)
            matmul_tiles(cross_q, inputs, share, part, y, PLAIN)
            turn = _met(counter, turn, workers)
            for pair in mine:
                s, h = pair // heads, pair % heads
                kept = _kept(layer[SOURCE:QKV], pair, token_room, width)
                for r in range(s * each, (s + 1) * each):
                    seen = 0
                    if model.source_bias.shape[0]:
                        moment = min(rows.position[r], model.source_bias.shape[1] - 1)
                        strides = model.source_bias.strides
                        seen = model.source_bias.ctypes.data + s * strides[0] + moment * strides[1]
                    _attended(y[r, h * width : (h + 1) * width], inputs.numbers[0], kept, tokens, seen, desk)
            turn = _met(counter, turn, workers)
            quantize_rows(y, cross_out, inputs)
            for r in range(x.shape[0]):
                if (
                    model.any_valid.shape[0]
                    and not model.any_valid[r // each, min(rows.position[r], model.any_valid.shape[1] - 1)]
                ):
                    inputs.scale[r] = -1
            matmul_tiles(cross_out, inputs, share, part, x, ADD)
            turn = _met(counter, turn, workers)
        _taken_normed(x, layer[NORM_MLP:STYLE], eps, (style + dim * 8 if style else 0, each), up, inputs, room)
        matmul_tiles(up, inputs, share, part, y, GELU)
        turn = _met(counter, turn, workers)
        quantize_rows(y, down, inputs)
        matmul_tiles(down, inputs, share, part, x, ADD)
        turn = _met(counter, turn, workers)
    if logits.shape[0]:
        _taken_normed(x, model.last, eps, (0, each), model.head, inputs, room)
        matmul_tiles(model.head, inputs, share, part, logits, PLAIN)
    return _met(counter, turn, workers)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def linear_forward(linear, x, inputs, part, out):
    """The rows of `x` through one matrix."""
    quantize_rows(x, linear, inputs)
    matmul_tiles(linear, inputs, (0, 1), part, out, PLAIN)
