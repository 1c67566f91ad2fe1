"""Linear layers and LSTMs with int8 or int4 weights, and float32 linear layers prepacked for oneDNN; inference only."""

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.errors import CheckpointError, RequestError
from cadenza.nn.conv import copy_with, run_lstm_cells
from cadenza.nn.kernels import cpu_kernel_unavailable_reason, gpu_kernel_unavailable_reason

if TYPE_CHECKING:
    from cadenza.nn.kernels.int_linear import PackedWeight

M = TypeVar("M", bound=nn.Module)
Kind = Literal["int8", "int4"]
KINDS: tuple[str, ...] = get_args(Kind)
DEVICES = ("cpu", "cuda")  # device types that can compute with quantised weights
TILE_OUTPUTS = 64
INT4_GROUP_SIZES = (64, 32)  # inputs that share a scale; the first that divides their number is used
MAX_GPU_ROWS = 8  # rows up to which the Triton kernel is faster than dequantising
INT4_RANGES = 16  # ranges tried for a group of int4
MAX_PACKED_WEIGHTS = 2**29  # weights above which no packed copy is made


class QuantizedLinear(nn.Module):
    """nn.Linear with a quantised weight.

    int8: one scale per output. int4: a scale and an offset per output and group of inputs. Outputs are stored in tiles
    of 64: `packed` [tiles, pairs of inputs, 64, 2], the layout of `nn.kernels.simd`.
    """

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, kind: Kind, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = inputs, outputs, kind
        tiles, pairs = -(-outputs // TILE_OUTPUTS), -(-inputs // 2)
        if kind == "int8":
            self.groups = 0
            self.register_buffer("packed", torch.empty(tiles, pairs, TILE_OUTPUTS, 2, dtype=torch.int8))
            self.register_buffer("scale", torch.empty(tiles * TILE_OUTPUTS))
            self.offset = None
        else:
            self.groups = inputs // int4_group_size(inputs)
            self.register_buffer("packed", torch.empty(tiles, pairs // 2, TILE_OUTPUTS, 2, dtype=torch.uint8))
            for name in ("scale", "offset"):
                self.register_buffer(name, torch.empty(tiles, self.groups, TILE_OUTPUTS, dtype=torch.bfloat16))
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: Kind) -> "QuantizedLinear":
        """Quantise a linear layer by rounding to the nearest."""
        bias = None if linear.bias is None else linear.bias.detach().float()
        with torch.device(linear.weight.device):
            layer = cls(linear.in_features, linear.out_features, kind=kind, bias=bias)
        if linear.weight.is_meta:
            return layer
        weight = linear.weight.detach().float()
        weight = F.pad(weight, (0, layer.packed.shape[1] * (2 if kind == "int8" else 4) - layer.in_features))
        weight = F.pad(weight, (0, 0, 0, layer.packed.shape[0] * TILE_OUTPUTS - layer.out_features))
        if kind == "int8":
            layer.scale.copy_(weight.abs().amax(1) / 127)
            numbers = (weight / layer.scale.clamp(min=1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8)
            layer.packed.copy_(numbers.view(len(layer.packed), TILE_OUTPUTS, -1, 2).transpose(1, 2))
            return layer
        numbers, scale, offset = _fit_int4(weight.view(len(weight), layer.groups, -1))
        for name, values in (("scale", scale), ("offset", offset)):
            getattr(layer, name).copy_(values.view(-1, TILE_OUTPUTS, layer.groups).transpose(1, 2))
        low, high = numbers.view(len(layer.packed), TILE_OUTPUTS, -1, 2, 2).transpose(1, 2).unbind(3)
        layer.packed.copy_(low | high << 4)
        return layer

    @property
    def weight(self) -> Tensor:
        """Return the packed numbers, so that the dtype of a layer's `weight` tells that it is quantised."""
        return self.packed

    @property
    def packed_weight(self) -> "PackedWeight":
        """Return the tensors for the CPU kernel."""
        from cadenza.nn.kernels.int_linear import PackedWeight

        return PackedWeight(self.packed, self.scale, self.offset, self.bias, self.in_features, self.out_features, self.groups)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "o i"]:
        """Return the weight in floating point."""
        tiles = len(self.packed)
        if self.kind == "int8":
            weight = self.packed.transpose(1, 2).reshape(tiles * TILE_OUTPUTS, -1).to(dtype) * self.scale[:, None].to(dtype)
        else:
            assert self.offset is not None
            numbers = torch.stack([self.packed & 15, self.packed >> 4], 2).flatten(1, 2)
            numbers = numbers.transpose(1, 2).reshape(tiles, TILE_OUTPUTS, self.groups, -1).to(dtype)
            scale, offset = (x.transpose(1, 2)[..., None].to(dtype) for x in (self.scale, self.offset))
            weight = (numbers * scale + offset).reshape(tiles * TILE_OUTPUTS, -1)
        return weight[: self.out_features, : self.in_features]

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        rows = x.shape[:-1].numel()
        if x.device.type == "cpu" and cpu_kernel_unavailable_reason() is None:  # for any batch: a row must not depend on it
            from cadenza.nn.kernels.int_linear import linear

            y = linear(self.packed_weight, x.reshape(rows, self.in_features).float())
            return y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        suits_triton = x.device.type == "cuda" and self.kind == "int8" and 0 < rows <= MAX_GPU_ROWS
        if suits_triton and gpu_kernel_unavailable_reason() is None:
            from cadenza.nn.kernels import triton_int8

            y = triton_int8.int8_matmul(x.reshape(rows, -1), self.packed, self.scale, outputs=self.out_features)
            return (y if bias is None else y + bias).view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLinear":
        """Move the tensors to another device, but never cast them."""
        return super()._apply(
            lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(fn(x.new_empty(0)).device), recurse
        )


class QuantizedLSTM(nn.Module):
    """nn.LSTM with int8 weights."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size
        weights = [(layer[0], layer[1], (layer[2] + layer[3]).detach()) for layer in lstm.all_weights]
        self.input_proj = nn.ModuleList(QuantizedLinear.from_linear(make_linear(w, bias), "int8") for w, _, bias in weights)
        self.recurrent_proj = nn.ModuleList(QuantizedLinear.from_linear(make_linear(w), "int8") for _, w, _ in weights)

    def forward(
        self, x: Float[Tensor, "f b d"], past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "f b d"], tuple[Tensor, Tensor]]:
        """Return the outputs, and the last hidden and cell states [layers, b, d]."""
        h, c = x.new_zeros(2, len(self.recurrent_proj), x.shape[1], self.width) if past is None else past
        states, dtype = [], x.dtype
        for layer, (input_proj, recurrent_proj) in enumerate(zip(self.input_proj, self.recurrent_proj, strict=True)):
            assert isinstance(recurrent_proj, QuantizedLinear)
            gates = input_proj(x)
            if x.device.type == "cpu" and cpu_kernel_unavailable_reason() is None:
                from cadenza.nn.kernels.int_linear import lstm_layer

                x, state = lstm_layer(recurrent_proj.packed_weight, gates, (h[layer], c[layer]))
            else:
                x, state = run_lstm_cells(gates, recurrent_proj.dequantize(gates.dtype), h[layer], c[layer])
            x = x.to(dtype)
            states.append(state)
        last_h, last_c = (torch.stack(values).to(dtype) for values in zip(*states, strict=True))
        return x, (last_h, last_c)


def make_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer with an existing weight."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return linear


def int4_group_size(inputs: int, layer: str = "linear layer") -> int:
    """Return the number of inputs that share an int4 scale; raise RequestError, naming `layer`, if no size divides them."""
    for size in INT4_GROUP_SIZES:
        if inputs % size == 0:
            return size
    sizes = " or ".join(map(str, sorted(INT4_GROUP_SIZES)))
    raise RequestError(
        f"{layer}: int4 needs layers whose number of inputs is a multiple of {sizes}, but this one has {inputs}; use int8"
    )


def quantize_linears(module: nn.Module, kind: Kind, *, int8_only: tuple[str, ...] = ()) -> None:
    """Replace all linear layers in `module` by quantised ones, by int8 if the name ends in one of `int8_only`.

    Raises RequestError, and changes nothing, if int4 does not suit a layer.
    """
    parts = dict(named_linears(module))
    kinds: dict[str, Kind] = {name: "int8" if name.endswith(int8_only) else kind for name in parts}
    for name, part in parts.items():
        if kinds[name] == "int4":
            int4_group_size(part.in_features, name)
    for name, part in parts.items():
        module.set_submodule(name, QuantizedLinear.from_linear(part, kinds[name]))


def named_linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the names and linear layers in a module."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.Linear:
            yield name, part


def quantize_lstms(module: nn.Module) -> None:
    """Replace all LSTMs in `module` by int8 ones."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.LSTM:
            module.set_submodule(name, QuantizedLSTM(part))


def prepare_for_checkpoint(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace the linear layers whose stored weights are quantised; raise CheckpointError if one does not exist."""
    for key, stored in weights.items():
        name = key.removesuffix(".packed")
        if name == key or stored.dtype not in (torch.int8, torch.uint8):
            continue
        part = dict(module.named_modules()).get(name)
        if isinstance(part, QuantizedLinear):
            continue
        if type(part) is not nn.Linear:
            raise CheckpointError(f"'{key}' is a quantised weight, but the model has no linear layer '{name}'")
        kind: Kind = "int8" if stored.dtype == torch.int8 else "int4"
        with torch.device(part.weight.device):
            module.set_submodule(name, QuantizedLinear(part.in_features, part.out_features, kind=kind, bias=part.bias))


def quantization_of(module: nn.Module) -> str | None:
    """Return the kind with the fewest bits among the quantised layers in a module, or None."""
    kinds = {part.kind for part in module.modules() if isinstance(part, QuantizedLinear)}
    return next((kind for kind in reversed(KINDS) if kind in kinds), None)


def check_device_supports(kind: str, device: torch.device) -> None:
    """Raise RequestError if a device cannot compute with int8 or int4 weights."""
    if device.type not in DEVICES:
        raise RequestError(f"{kind} weights run on {' and '.join(DEVICES)}, not on {device.type}; use half precision there")


def dequantized_if_unsupported(module: M) -> M:
    """Return the module, or a copy with float32 weights if a CPU kernel for its quantised layers is missing."""
    device, kind = next(module.parameters()).device.type, quantization_of(module)
    if device == "cuda" and kind == "int8" and (reason := gpu_kernel_unavailable_reason()) is not None:
        warnings.warn(f"int8 weights are dequantised for each product, which is slower: {reason}", stacklevel=3)
    if device != "cpu" or kind is None or (reason := cpu_kernel_unavailable_reason()) is None:
        return module
    warnings.warn(f"{kind} weights are dequantised to float32, which takes more memory and time: {reason}", stacklevel=3)

    def dequantize(part: nn.Module) -> nn.Linear | None:
        return make_linear(part.dequantize(), part.bias) if isinstance(part, QuantizedLinear) else None

    return copy_with(module, dequantize)


def _fit_int4(weight: Float[Tensor, "o g n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers 0 to 15, scale and offset of each group, for the range with the lowest squared error."""
    low, high = weight.amin(-1), weight.amax(-1)
    best = torch.full_like(low, torch.inf)
    numbers = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    scale = torch.zeros_like(low, dtype=torch.bfloat16)
    offset = torch.zeros_like(low, dtype=torch.bfloat16)
    for i in range(INT4_RANGES):
        share = 1 - 0.4 * i / INT4_RANGES
        s = (share * (high - low) / 15).clamp(min=1e-30).bfloat16()
        o = (share * low).bfloat16()
        q = ((weight - o[..., None].float()) / s[..., None].float()).round_().clamp_(0, 15)
        error = torch.addcmul(o[..., None].float(), q, s[..., None].float()).sub_(weight).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
        numbers = torch.where(better[..., None], q.to(torch.uint8), numbers)
    return numbers, scale, offset


class PackedLinear(nn.Module):
    """nn.Linear by oneDNN, with a packed copy of the weight or the weight itself."""

    def __init__(self, linear: nn.Linear, rows: int, *, pack: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if pack else weight
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linears(module: M, rows: int) -> M:
    """Return a copy of the module for products with `rows` rows, or the module itself where that is not faster.

    Packed weights take two thirds of the time for one row and a quarter for three. A model above `MAX_PACKED_WEIGHTS`
    keeps its layout, which halves the speed for several rows and does not help for one.
    """
    pack = _weight_count(module) <= MAX_PACKED_WEIGHTS
    on_cpu = all(weight.device.type == "cpu" for weight in module.parameters()) and not torch.is_autocast_enabled("cpu")
    if not on_cpu or not _can_pack(module) or (rows == 1 and not pack):
        return module
    return copy_with(module, lambda part: PackedLinear(part, rows, pack=pack) if isinstance(part, nn.Linear) else None)


def packed_bytes(module: nn.Module, rows: int, *, device: str = "cpu") -> int:
    """Return the bytes that `pack_linears` adds to a module on a device; the same for any number of rows."""
    if rows < 1 or device != "cpu" or not _can_pack(module) or _weight_count(module) > MAX_PACKED_WEIGHTS:
        return 0
    return sum(part.weight.nbytes for part in module.modules() if isinstance(part, nn.Linear))


def _can_pack(module: nn.Module) -> bool:
    return all(weight.dtype == torch.float32 for weight in module.parameters()) and torch.backends.mkldnn.is_available()


def _weight_count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
