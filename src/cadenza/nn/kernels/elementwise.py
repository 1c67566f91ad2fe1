"""Rounding, norms and activations of a row of numbers, as loops that LLVM vectorises."""

import numpy as np
from numba import njit

from cadenza.nn.kernels.simd import read_float

FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # sums may be reordered; infinities occur
# Inlined always: a copy from another kernel, optimised in other surroundings, could differ in the last digit.
inlined = njit(fastmath=FAST, error_model="numpy", forceinline=True)


@inlined
def exp(x):
    """Return e**x for a float32 clamped to [-87, 88], to 2 units in the last place."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.int32(np.rint(x * np.float32(1.44269504)))
    whole = np.float32(n)
    r = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = (p * r) * r + r + np.float32(1)
    return p * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)  # 2**n


@inlined
def gelu(x):
    """Return x * Phi(x); the error function is accurate to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    z = abs(x) * np.float32(0.70710678)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
    p = np.float32(1.061405429)
    p = p * t + np.float32(-1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t + np.float32(-0.284496736)
    p = (p * t + np.float32(0.254829592)) * t
    tail = np.float32(0.5) * p * exp(-z * z)  # of the normal distribution beyond |x|
    return x * (tail if x < np.float32(0) else np.float32(1) - tail)


def _quantizer(limit):
    """Return a compiled function that writes `n` values as integers up to `limit` to an int16 array.

    The array is padded with a 0 to an even number; the function returns the scale.
    """

    @inlined
    def quantize(values, n, out):
        top = np.float32(0)
        for i in range(n):
            top = max(top, abs(values[i]))
        if top < np.float32(1e-30):
            out[: n + n % 2] = 0
            return np.float32(0)
        factor = limit / top
        for i in range(n):
            out[i] = np.int16(np.int32(np.rint(values[i] * factor)))
        if n % 2:
            out[n] = 0
        return top / limit

    return quantize


quantize_int16, quantize_int8 = _quantizer(np.float32(32767)), _quantizer(np.float32(127))


@inlined
def layer_norm_row(x, norm, eps, style, out):
    """Write the layer norm of a row; `style` is 0 or the address of its scale and shift (adaptive norm)."""
    n, weight, bias = x.shape[0], norm[0], norm[1]
    total = np.float32(0)
    for i in range(n):
        total += x[i]
    mean = total / np.float32(n)
    square = np.float32(0)
    for i in range(n):
        d = x[i] - mean
        square += d * d
    inverse = np.float32(1) / np.sqrt(square / np.float32(n) + eps)
    for i in range(n):
        out[i] = (x[i] - mean) * inverse * read_float(weight, i) + read_float(bias, i)
    if style:
        for i in range(n):
            out[i] = out[i] * (np.float32(1) + read_float(style, i)) + read_float(style, n + i)


@inlined
def apply_rotary_row(x, cos, sin, buffer):
    """Rotate a query or key in place; `buffer` is as long."""
    n = x.shape[0]
    for i in range(n):
        buffer[i] = x[i] * cos[i] + x[(i + n // 2) % n] * sin[i]
    for i in range(n):
        x[i] = buffer[i]
