"""Vector instructions for numba: integer products with 32-bit sums; memory access by address, and a barrier.

The products are written in LLVM's vector code, 512 bits wide, which LLVM maps to the processor: one instruction for 32
products with AVX-512 VNNI, several elsewhere. Weights are stored in tiles [pairs, outputs, 2], two inputs of each output
next to each other, so that every lane sums one output and no sum crosses lanes. Inputs are int16.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeAlias

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # 32-bit sums in a vector
PREFETCH_DISTANCE = 4096  # bytes
FLUSH = 256  # pairs whose int16 * int8 products cannot overflow a sum: 2 * 256 * 32767 * 127 < 2**31

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_SUMS, _PAIRS = ir.VectorType(_I32, LANES), ir.VectorType(_I16, 2 * LANES)
_BYTES, _FLOATS, _SHORTS = ir.VectorType(_I8, 2 * LANES), ir.VectorType(_F32, LANES), ir.VectorType(_I16, LANES)

Builder: TypeAlias = Any  # llvmlite's
Value: TypeAlias = Any


def _load(b: Builder, address: Value, kind: Any) -> Value:
    return b.load(b.inttoptr(address, ir.PointerType(kind)), typ=kind, align=1)


def _store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, ir.PointerType(value.type)), align=1)


def _at(b: Builder, base: Value, index: Value, size: int) -> Value:
    return b.add(base, b.mul(index, _I64(size)))


def _prefetch(b: Builder, address: Value, size: int) -> None:
    """Prefetch memory that is read some iterations later."""
    byte = ir.PointerType(_I8)
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    for line in range(0, size, 64):
        b.call(prefetch, [b.inttoptr(b.add(address, _I64(PREFETCH_DISTANCE + line)), byte), _I32(0), _I32(3), _I32(1)])


def _broadcast(b: Builder, scalar: Value, lanes: int) -> Value:
    """Return a vector with one number in every lane."""
    kind = ir.VectorType(scalar.type, lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I32(0))
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), [_I32(0)] * lanes))


def _constant(kind: Any, value: float) -> Value:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _loop(b: Builder, count: Value, state: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]) -> list[Value]:
    """Apply `body` to the state `count` times."""
    before = b.block
    head, inside, after = (b.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    index, now = b.phi(_I64), [b.phi(value.type) for value in state]
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    then = body(index, now)
    following = b.add(index, _I64(1))
    for phi, first, next_ in zip([index, *now], [_I64(0), *state], [following, *then], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, b.block)
    b.branch(head)
    b.position_at_end(after)
    return now


def _dot(context: Any, b: Builder, x: Value, w: Value) -> Value:
    """Return 16 sums of two products each, of int16 [32] with int16 [32]."""
    features = context.codegen().magic_tuple()[2].split(",")
    if "+avx512bw" in features:
        kind = ir.FunctionType(_SUMS, [_PAIRS, _PAIRS])
        return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.pmaddw.d.512"), [x, w])
    undefined = ir.Constant(_PAIRS, ir.Undefined)
    if "+avx2" in features:
        kind = ir.FunctionType(ir.VectorType(_I32, LANES // 2), [ir.VectorType(_I16, LANES)] * 2)
        add = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx2.pmadd.wd")
        lanes = [ir.Constant(ir.VectorType(_I32, LANES), [_I32(i + part) for i in range(LANES)]) for part in (0, LANES)]
        parts = [b.call(add, [b.shuffle_vector(value, undefined, place) for value in (x, w)]) for place in lanes]
        return b.shuffle_vector(*parts, ir.Constant(ir.VectorType(_I32, LANES), [_I32(i) for i in range(LANES)]))

    def half(value: Value, odd: int) -> Value:
        lanes = ir.Constant(ir.VectorType(_I32, LANES), [_I32(2 * i + odd) for i in range(LANES)])
        return b.sext(b.shuffle_vector(value, undefined, lanes), _SUMS)

    return b.add(b.mul(half(x, 0), half(w, 0)), b.mul(half(x, 1), half(w, 1)))


def _add_products(
    context: Any, b: Builder, sums: list[Value], weights: list[Value], x: Value, stride: Value, pair: Value
) -> list[Value]:
    """Add to `sums`, rows * vectors, the products of a pair of inputs of each row with the weights."""
    inputs = []
    for row in range(len(sums) // len(weights)):
        address = _at(b, b.add(x, b.mul(stride, _I64(row))), pair, 4)
        inputs.append(b.bitcast(_broadcast(b, _load(b, address, _I32), LANES), _PAIRS))
    return [b.add(s, _dot(context, b, *pairs)) for s, pairs in zip(sums, product(inputs, weights), strict=True)]


def int8_tile_kernel(rows: int, vectors: int) -> Any:
    """Return an intrinsic (weights, scale, pairs, x, stride, out) for an int8 tile of 16 * `vectors` outputs.

    It computes out [rows, outputs] = scale * (weights x). `x` is int16, with `stride` bytes between rows; `scale` and
    `out` are float32. All arguments are int64: addresses, numbers and strides.
    """

    @intrinsic
    def multiply(typing: Any, weights: Any, scale: Any, pairs: Any, x: Any, stride: Any, out: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
            weights, scale, pairs, x, stride, out = arguments
            rounds = b.sdiv(b.add(pairs, _I64(FLUSH - 1)), _I64(FLUSH))

            def flush(number: Value, totals: list[Value]) -> list[Value]:
                first = b.mul(number, _I64(FLUSH))

                def add(index: Value, sums: list[Value]) -> list[Value]:
                    pair = b.add(first, index)
                    base = _at(b, weights, pair, 2 * LANES * vectors)
                    if vectors == 4:
                        _prefetch(b, base, 128)
                    parts = [b.sext(_load(b, _at(b, base, _I64(part), 2 * LANES), _BYTES), _PAIRS) for part in range(vectors)]
                    return _add_products(context, b, sums, parts, x, stride, pair)

                left = b.sub(pairs, first)
                count = b.select(b.icmp_signed("<", _I64(FLUSH), left), _I64(FLUSH), left)
                sums = _loop(b, count, [_constant(_SUMS, 0)] * rows * vectors, add)
                return [b.fadd(total, b.sitofp(s, _FLOATS)) for total, s in zip(totals, sums, strict=True)]

            totals = _loop(b, rounds, [_constant(_FLOATS, 0.0)] * rows * vectors, flush)
            for place, total in enumerate(totals):
                factor = _load(b, _at(b, scale, _I64(place % vectors), 4 * LANES), _FLOATS)
                _store(b, b.fmul(total, factor), _at(b, out, _I64(place), 4 * LANES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return multiply


def int4_tile_kernel(rows: int) -> Any:
    """Return an intrinsic as `int8_tile_kernel` does, for an int4 tile of 64 outputs.

    Its arguments are (weights, scale, offset, groups, quads, x, stride, sums, sums_stride, out). A byte holds two inputs,
    two pairs apart; the lower half is the first. In each of `groups` groups of 4 * `quads` inputs a weight is
    scale * number + offset, both bfloat16 [groups, 64]. `sums` are the sums of the inputs of each group, int32
    [rows, groups], with `sums_stride` bytes between rows.
    """

    @intrinsic
    def multiply(
        typing: Any, weights: Any, scale: Any, offset: Any, groups: Any, quads: Any, x: Any, stride: Any, sums: Any,
        sums_stride: Any, out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
            weights, scale, offset, groups, quads, x, stride, sums, sums_stride, out = arguments

            def factors(base: Value, group: Value, part: int) -> Value:
                short = _load(b, _at(b, _at(b, base, group, 128), _I64(part), 2 * LANES), _SHORTS)
                return b.bitcast(b.shl(b.zext(short, _SUMS), _constant(_SUMS, 16)), _FLOATS)

            def add_group(group: Value, totals: list[Value]) -> list[Value]:
                first = b.mul(group, quads)

                def add(index: Value, sums: list[Value]) -> list[Value]:
                    quad = b.add(first, index)
                    base = _at(b, weights, quad, 128)
                    _prefetch(b, base, 128)
                    bytes_ = [b.zext(_load(b, _at(b, base, _I64(part), 2 * LANES), _BYTES), _PAIRS) for part in range(4)]
                    low = [b.and_(value, _constant(_PAIRS, 15)) for value in bytes_]
                    high = [b.lshr(value, _constant(_PAIRS, 4)) for value in bytes_]
                    for half, parts in enumerate((low, high)):
                        pair = b.add(b.shl(quad, _I64(1)), _I64(half))
                        sums = _add_products(context, b, sums, parts, x, stride, pair)
                    return sums

                inner = _loop(b, quads, [_constant(_SUMS, 0)] * rows * 4, add)
                _prefetch(b, _at(b, scale, group, 128), 128)
                _prefetch(b, _at(b, offset, group, 128), 128)
                scales = [factors(scale, group, part) for part in range(4)]
                offsets = [factors(offset, group, part) for part in range(4)]
                whole = []
                for row in range(rows):
                    row_sum = _load(b, _at(b, b.add(sums, b.mul(sums_stride, _I64(row))), group, 4), _I32)
                    whole.append(_broadcast(b, b.sitofp(row_sum, _F32), LANES))
                kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
                multiply_add = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32")
                results = []
                for place, (total, s) in enumerate(zip(totals, inner, strict=True)):
                    scaled = b.call(multiply_add, [b.sitofp(s, _FLOATS), scales[place % 4], total])
                    results.append(b.call(multiply_add, [whole[place // 4], offsets[place % 4], scaled]))
                return results

            totals = _loop(b, groups, [_constant(_FLOATS, 0.0)] * rows * 4, add_group)
            for place, total in enumerate(totals):
                _store(b, total, _at(b, out, _I64(place), 4 * LANES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return multiply


def _at_address(kind: Any, numba_type: Any, size: int) -> tuple[Any, Any]:
    """Return intrinsics (address, index) to read and (address, index, value) to write a number of an array."""

    @intrinsic
    def read(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
            address, index = arguments
            return b.load(b.inttoptr(_at(b, address, index, size), ir.PointerType(kind)), typ=kind)

        return numba_type(types.int64, types.int64), generate

    @intrinsic
    def write(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
            address, index, value = arguments
            b.store(value, b.inttoptr(_at(b, address, index, size), ir.PointerType(kind)))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), generate

    return read, write


read_float, write_float = _at_address(_F32, types.float32, 4)
_, write_byte = _at_address(_I8, types.int8, 1)


@intrinsic
def atomic_increment(typing: Any, counter: Any) -> Any:
    """Add 1 to the int64 at an address atomically, and return the value before."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
        return b.atomic_rmw("add", b.inttoptr(arguments[0], ir.PointerType(_I64)), _I64(1), "seq_cst")

    return types.int64(types.int64), generate


@intrinsic
def atomic_load(typing: Any, counter: Any) -> Any:
    """Return the int64 at an address, read atomically."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
        return b.load_atomic(b.inttoptr(arguments[0], ir.PointerType(_I64)), "seq_cst", 8, typ=_I64)

    return types.int64(types.int64), generate


@intrinsic
def cpu_pause(typing: Any) -> Any:
    """Pause the processor briefly in a waiting loop."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
        if context.codegen().magic_tuple()[0].startswith("x86_64"):
            b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def thread_yield(typing: Any) -> Any:
    """Give other threads of the machine time to run."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Value:
        if sys.platform != "win32":
            b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(_I32, []), "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@njit(error_model="numpy", forceinline=True)
def wait_for_workers(counter, turn, workers):
    """Wait until all workers have arrived; return the barrier value of the next wait."""
    turn += workers
    atomic_increment(counter)  # type: ignore[reportCallIssue]
    spins = 0
    while atomic_load(counter) < turn:
        cpu_pause()
        spins += 1
        if spins > 2000:
            thread_yield()
    return turn
