"""Matrices laid out once for products with a few rows, which is what a decoder does on a CPU all the time."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.errors import CheckpointError, RequestError
from cadenza.nn.kernels import cpu_kernel_unavailable_reason, gpu_kernel_unavailable_reason

M = TypeVar("M", bound=nn.Module)
LIMIT = 2**29  # weights; the packed ones lie beside the module's own


class PackedLinear(nn.Module):
    """The product of nn.Linear, without gradient, by oneDNN, from a weight in its own layout or as it is."""

    def __init__(self, linear: nn.Linear, rows: int, *, beside: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if beside else weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linears(module: M, rows: int) -> M:
    """A twin of the module for products with `rows` rows; the module itself where that is no help.

    It takes two thirds of the time for one row, and a quarter for three, which then cost little more than one. A model
    too large to lie in memory twice keeps its own layout, which is half as slow for several rows and no help for one.
    """
    weights = list(module.parameters())
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights) and not torch.is_autocast_enabled("cpu")
    beside = sum(w.numel() for w in weights) <= LIMIT
    if not plain or not torch.backends.mkldnn.is_available() or (rows == 1 and not beside):
        return module
    return _twin(module, rows, beside=beside)


def packed_bytes(module: nn.Module, rows: int, *, device: str = "cpu") -> int:
    """Bytes of the packed matrices that `packed` lays beside a module's own on a device."""
    weights = list(module.parameters())
    plain = device == "cpu" and all(w.dtype == torch.float32 for w in weights) and torch.backends.mkldnn.is_available()
    if not plain or sum(w.numel() for w in weights) > LIMIT:
        return 0
    return sum(part.weight.nbytes for part in module.modules() if isinstance(part, nn.Linear))


def _twin(module: M, rows: int, *, beside: bool) -> M:
    if isinstance(module, nn.Linear):
        return PackedLinear(module, rows, beside=beside)  # type: ignore[return-value]
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else _twin(part, rows, beside=beside) for name, part in module._modules.items()}
    return twin


if TYPE_CHECKING:
    from cadenza.nn.kernels.int_linear import PackedWeight


Kind = Literal["int8", "int4"]
KINDS: tuple[str, ...] = get_args(Kind)
ON = ("cpu", "cuda")  # kinds of devices that compute with them
OUTPUTS = 64  # of a tile
GROUPS = (64, 32)  # inputs that share a scale, the first that divides them
FEW = 8  # rows up to which a GPU's own units for matrices are no help
MANY = 256  # rows from which on a product is quicker with the weights written out
SHRINKS = 16  # ranges tried for a group of int4


class QuantizedLinear(nn.Module):
    """The product of nn.Linear with a quantised weight, without gradient."""

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, kind: Kind, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = inputs, outputs, kind
        tiles, pairs = -(-outputs // OUTPUTS), -(-inputs // 2)
        if kind == "int8":
            self.groups = 0
            self.register_buffer("packed", torch.empty(tiles, pairs, OUTPUTS, 2, dtype=torch.int8))
            self.register_buffer("scale", torch.empty(tiles * OUTPUTS))
            self.offset = None
        else:
            self.groups = inputs // int4_group_size(inputs)
            self.register_buffer("packed", torch.empty(tiles, pairs // 2, OUTPUTS, 2, dtype=torch.uint8))
            for name in ("scale", "offset"):
                self.register_buffer(name, torch.empty(tiles, self.groups, OUTPUTS, dtype=torch.bfloat16))
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: Kind) -> "QuantizedLinear":
        """The nearest to a linear layer."""
        bias = None if linear.bias is None else linear.bias.detach().float()
        with torch.device(linear.weight.device):
            made = cls(linear.in_features, linear.out_features, kind=kind, bias=bias)
        if linear.weight.is_meta:
            return made
        weight = linear.weight.detach().float()
        weight = F.pad(weight, (0, made.packed.shape[1] * (2 if kind == "int8" else 4) - made.in_features))
        weight = F.pad(weight, (0, 0, 0, made.packed.shape[0] * OUTPUTS - made.out_features))
        if kind == "int8":
            made.scale.copy_(weight.abs().amax(1) / 127)
            numbers = (weight / made.scale.clamp(min=1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8)
            made.packed.copy_(numbers.view(len(made.packed), OUTPUTS, -1, 2).transpose(1, 2))
            return made
        numbers, scale, offset = _fitted(weight.view(len(weight), made.groups, -1))
        for name, values in (("scale", scale), ("offset", offset)):
            getattr(made, name).copy_(values.view(-1, OUTPUTS, made.groups).transpose(1, 2))
        low, high = numbers.view(len(made.packed), OUTPUTS, -1, 2, 2).transpose(1, 2).unbind(3)
        made.packed.copy_(low | high << 4)
        return made

    @property
    def weight(self) -> Tensor:
        """The numbers as they lie, so that what looks at the dtype of a layer's weight sees them."""
        return self.packed

    @property
    def packed_weight(self) -> "PackedWeight":
        """What the kernel reads."""
        from cadenza.nn.kernels.int_linear import PackedWeight

        return PackedWeight(self.packed, self.scale, self.offset, self.bias, self.in_features, self.out_features, self.groups)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "o i"]:
        """The weight as it is meant."""
        tiles = len(self.packed)
        if self.kind == "int8":
            weight = self.packed.transpose(1, 2).reshape(tiles * OUTPUTS, -1).to(dtype) * self.scale[:, None].to(dtype)
        else:
            assert self.offset is not None
            numbers = torch.stack([self.packed & 15, self.packed >> 4], 2).flatten(1, 2)
            numbers = numbers.transpose(1, 2).reshape(tiles, OUTPUTS, self.groups, -1).to(dtype)
            scale, offset = (x.transpose(1, 2)[..., None].to(dtype) for x in (self.scale, self.offset))
            weight = (numbers * scale + offset).reshape(tiles * OUTPUTS, -1)
        return weight[: self.out_features, : self.in_features]

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        rows = x.shape[:-1].numel()
        if x.device.type == "cpu" and rows <= MANY and cpu_kernel_unavailable_reason() is None:
            from cadenza.nn.kernels.int_linear import linear

            return (
                linear(self.packed_weight, x.reshape(rows, self.in_features).float())
                .view(*x.shape[:-1], self.out_features)
                .to(x.dtype)
            )
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if x.device.type == "cuda" and self.kind == "int8" and 0 < rows <= FEW and gpu_kernel_unavailable_reason() is None:
            from cadenza.nn.kernels import triton_int8

            y = triton_int8.int8_matmul(x.reshape(rows, -1), self.packed, self.scale, outputs=self.out_features)
            return (y if bias is None else y + bias).view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLinear":
        """Moves it and never casts it: what scales numbers keeps its dtype."""
        return super()._apply(
            lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(fn(x.new_empty(0)).device), recurse
        )


class QuantizedLSTM(nn.Module):
    """The layers of nn.LSTM with int8 weights, without gradient."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size
        weights = [(layer[0], layer[1], layer[2].detach() + layer[3].detach()) for layer in lstm.all_weights]
        self.input_proj = nn.ModuleList(QuantizedLinear.from_linear(_linear(w, bias), "int8") for w, _, bias in weights)
        self.recurrent_proj = nn.ModuleList(QuantizedLinear.from_linear(_linear(w, None), "int8") for _, w, _ in weights)

    def forward(
        self, x: Float[Tensor, "f b d"], past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "f b d"], tuple[Tensor, Tensor]]:
        """Outputs, and the last hidden and cell states [l b d] of the layers."""
        h, c = x.new_zeros(2, len(self.recurrent_proj), x.shape[1], self.width) if past is None else past
        ends, dtype = [], x.dtype
        for layer, (inward, again) in enumerate(zip(self.input_proj, self.recurrent_proj, strict=True)):
            x, end = _recurrent(again, inward(x), (h[layer], c[layer]))  # type: ignore[arg-type]
            x = x.to(dtype)
            ends.append(end)
        last_h, last_c = (torch.stack(each).to(dtype) for each in zip(*ends, strict=True))
        return x, (last_h, last_c)


def _recurrent(again: QuantizedLinear, gates: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if gates.device.type == "cpu" and cpu_kernel_unavailable_reason() is None:
        from cadenza.nn.kernels.int_linear import lstm_layer

        return lstm_layer(again.packed_weight, gates, state)
    (h, c), weight, outputs = state, again.dequantize(gates.dtype), []
    for now in gates:
        enter, forget, new, leave = (now + F.linear(h, weight)).chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        h = leave.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of a weight that is there."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return linear


def int4_group_size(inputs: int) -> int:
    """Inputs that share a scale in int4; RequestError where none of the sizes divides them."""
    for size in GROUPS:
        if inputs % size == 0:
            return size
    sizes = " or ".join(map(str, sorted(GROUPS)))
    raise RequestError(f"int4 needs a number of inputs that {sizes} divides, and a layer has {inputs}; use int8")


def quantize_linears(module: nn.Module, kind: Kind, *, gently: tuple[str, ...] = ()) -> None:
    """Makes every linear layer below `module` a quantised one, in place; int8 where its name ends in one of `gently`.

    RequestError, and nothing is changed, where int4 does not suit a layer.
    """
    parts = dict(named_linears(module))
    kinds: dict[str, Kind] = {name: "int8" if name.endswith(gently) else kind for name in parts}
    for name, part in parts.items():
        if kinds[name] == "int4":
            try:
                int4_group_size(part.in_features)
            except RequestError as error:
                raise RequestError(f"{name}: {error}") from None
    for name, part in parts.items():
        _put(module, name, QuantizedLinear.from_linear(part, kinds[name]))


def named_linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers below a module and their names."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.Linear:
            yield name, part


def quantize_lstms(module: nn.Module) -> None:
    """Makes every LSTM below `module` one of int8, in place."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.LSTM:
            _put(module, name, QuantizedLSTM(part))


def prepare_for_checkpoint(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives `module` the quantised layers that stored weights are of; CheckpointError where it has no such layer."""
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
            _put(module, name, QuantizedLinear(part.in_features, part.out_features, kind=kind, bias=part.bias))


def quantization_of(module: nn.Module) -> str | None:
    """What the weights below a module are quantised to: the narrowest of their kinds, None where none is."""
    kinds = {part.kind for part in module.modules() if isinstance(part, QuantizedLinear)}
    return next((kind for kind in reversed(KINDS) if kind in kinds), None)


def check_device_supports(kind: str, device: torch.device) -> None:
    """RequestError where a device does not compute with weights of 8 or 4 bits."""
    if device.type not in ON:
        raise RequestError(
            f"{kind} weights are computed with on {' and '.join(ON)}, not on {device.type}; take half precision there"
        )


def dequantized_if_unsupported(module: M) -> M:
    """The module, or where its quantised layers cannot be computed with quickly a twin with their weights in float32."""
    device, kind = next(module.parameters()).device.type, quantization_of(module)
    if device == "cuda" and kind == "int8" and (reason := gpu_kernel_unavailable_reason()) is not None:
        warnings.warn(f"int8 weights are written out for each product, which takes more time: {reason}", stacklevel=3)
    if device != "cpu" or kind is None or (reason := cpu_kernel_unavailable_reason()) is None:
        return module
    warnings.warn(f"{kind} weights are computed with as float32, in more memory and time: {reason}", stacklevel=3)
    return _wide(module)


def _wide(module: Any) -> Any:
    if isinstance(module, QuantizedLinear):
        return _linear(module.dequantize(), module.bias)
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else _wide(part) for name, part in module._modules.items()}
    return twin


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, part)


def _fitted(weight: Float[Tensor, "o g n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0 to 15, scale and offset of each group: of some ranges the one with the least square error."""
    low, high = weight.amin(-1), weight.amax(-1)
    best = torch.full_like(low, torch.inf)
    numbers = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    scale = torch.zeros_like(low, dtype=torch.bfloat16)
    offset = torch.zeros_like(low, dtype=torch.bfloat16)
    for i in range(SHRINKS):
        share = 1 - 0.4 * i / SHRINKS
        s = (share * (high - low) / 15).clamp(min=1e-30).bfloat16()
        o = (share * low).bfloat16()
        q = ((weight - o[..., None].float()) / s[..., None].float()).round_().clamp_(0, 15)
        error = torch.addcmul(o[..., None].float(), q, s[..., None].float()).sub_(weight).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
        numbers = torch.where(better[..., None], q.to(torch.uint8), numbers)
    return numbers, scale, offset
