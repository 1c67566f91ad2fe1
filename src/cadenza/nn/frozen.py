"""Frozen pretrained encoders of a module: loaded on first use, moved with it and never cast."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cadenza.core.checkpoint import CHUNK_BYTES, LazyTensor, check_state_dict, raise_if_not_finite
from cadenza.core.hub import ModelSource
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.weight_quantization import TILE_OUTPUTS, QuantizedLinear, make_linear, named_linears, quantize_linears

Network = TypeVar("Network", bound=nn.Module)
_SCRATCH = 8 * CHUNK_BYTES  # bytes of a chunk and of its intermediate results


class FrozenEncoder(ABC, Generic[Network]):
    """The network that a spec names by `model` and `revision`; copies share it, each process loads its own."""

    loads_per_tensor: ClassVar[bool] = False  # weights are converted one by one while they are read

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.source = ModelSource(spec.model, spec.revision)
        self._network: Network | None = None
        self._sizes: dict[tuple[bool, bool], int] = {}
        self.quantized = False  # keep the linear layers in int8

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.spec,)

    @abstractmethod
    def build(self) -> Network:
        """Return the network with newly loaded weights; on the meta device without them."""

    def build_resident(self) -> Network:
        """Return the network for inference, with int8 linear layers if `quantized`."""
        network = self.build()
        if self.quantized:
            quantize_linears(network, "int8")
        return network

    @property
    def cheap_to_reload(self) -> bool:
        """Whether loading is fast enough to unload the network while it is not used."""
        return False

    def unload(self) -> None:
        """Free the network if it is cheap to reload and on the CPU."""
        if self._network is not None and self.cheap_to_reload and next(self._network.parameters()).device.type == "cpu":
            self._network = None

    def get(self, device: torch.device) -> Network:
        """Return the frozen network on a device, loading it if needed."""
        if self._network is None:
            with torch.device("cpu"), torch.inference_mode(False):
                self._network = self.build_resident().requires_grad_(False)
        self.move_to(device)
        return self._network

    def unloaded_bytes(self, *, peak: bool = False) -> int:
        """Return the bytes of weights that are not loaded yet, or with `peak` the maximum while loading."""
        if self._network is not None:
            return 0
        if (self.quantized, peak) not in self._sizes:
            self._sizes[self.quantized, peak] = self._size(peak)
        return self._sizes[self.quantized, peak]

    def _size(self, peak: bool) -> int:
        loads_whole = peak and not self.loads_per_tensor
        with init_empty_weights():
            network = self.build() if loads_whole else self.build_resident()
        size = sum(x.numel() * x.element_size() for x in network.state_dict().values())
        return 2 * size if loads_whole else size + peak * min(size, _SCRATCH)  # the file and its copy in memory

    def move_to(self, device: torch.device) -> None:
        """Move the network to a device if it is loaded."""
        if self._network is not None and next(self._network.parameters()).device != device:
            with torch.inference_mode(False):
                self._network.to(device)


def save_model(folder: Path, config: Mapping[str, Any], files: Iterable[Path], weights: Mapping[str, Tensor]) -> None:
    """Write a model, or without `weights` only its config and `files`, to a folder in the layout of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
    if weights:
        save_file({name: x.contiguous() for name, x in weights.items()}, weights_path, {"format": "pt"})
        weights_path.chmod(config_path.stat().st_mode)  # safetensors restricts it to the owner


def load_weights_streaming(
    network: nn.Module, weights: Mapping[str, LazyTensor], *, source: str, bfloat16: tuple[str, ...] | None = None
) -> None:
    """Load weights into a network on the meta device in chunks of rows, in the dtypes that the network has.

    With `bfloat16` its linear layers become int8, and the tables it names bfloat16, chunk by chunk. Raises
    CheckpointError, naming the `source`, if names or shapes differ or values are not finite.
    """
    check_state_dict(weights, network.state_dict(), source)
    if bfloat16 is not None:
        quantize_on_meta(network, bfloat16)
    writers = {name: _row_writer(*_owner(network, name)) for name in weights}  # allocate all first: no gaps between them
    not_finite = []
    for name, record in weights.items():
        finite = torch.ones((), dtype=torch.bool)
        for first, x in record.iter_row_chunks(TILE_OUTPUTS):
            finite &= x.isfinite().all()
            writers[name](first, x)
        if not finite:
            not_finite.append(name)
    raise_if_not_finite(sorted(not_finite), source)


def quantize_on_meta(network: nn.Module, tables: tuple[str, ...]) -> None:
    """Give a network on the meta device int8 linear layers, and bfloat16 for the weights `tables`."""
    for name, linear in named_linears(network):
        with torch.device("meta"):
            quantized = QuantizedLinear(linear.in_features, linear.out_features, kind="int8", bias=linear.bias)
        network.set_submodule(name, quantized)
    for name in tables:
        owner, attribute = _owner(network, name)
        setattr(owner, attribute, nn.Parameter(getattr(owner, attribute).bfloat16()))


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has a parameter, and the name of the attribute."""
    parent, _, attribute = name.rpartition(".")
    return network.get_submodule(parent), attribute


def _row_writer(owner: nn.Module, name: str) -> Callable[[int, Tensor], None]:
    """Allocate a weight on the CPU, and return a function (first row, rows) that fills it."""
    if isinstance(owner, QuantizedLinear) and name == "weight":
        owner.packed, owner.scale = (
            torch.empty(x.shape, dtype=x.dtype, device="cpu")
            for x in (owner.packed, owner.scale)  # empty_like of meta loads the compiler
        )
        return partial(_write_quantized, owner)
    weight = getattr(owner, name)
    values = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
    setattr(owner, name, nn.Parameter(values) if isinstance(weight, nn.Parameter) else values)

    def write(first: int, x: Tensor) -> None:
        (values[first : first + len(x)] if x.ndim else values).copy_(x)

    return write


def _write_quantized(layer: QuantizedLinear, first: int, rows: Tensor) -> None:
    part = QuantizedLinear.from_linear(make_linear(rows), "int8")
    tile = first // TILE_OUTPUTS
    layer.packed[tile : tile + len(part.packed)] = part.packed
    layer.scale[first : first + len(part.scale)] = part.scale


class FrozenEncoderMixin(nn.Module):
    """Moves a FrozenEncoder with the module: `pretrained`, and its trainable network `encoder` if there is one.

    Neither is cast. `dtype_ref` is an empty buffer with the device and dtype in which the module computes.
    """

    pretrained: Any  # FrozenEncoder
    dtype_ref: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        encoder = self._modules.pop("encoder", None)
        super()._apply(fn, recurse)
        if encoder is not None:
            encoder._apply(lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(self.dtype_ref.device))
            self._modules["encoder"] = encoder
        if not self.dtype_ref.is_meta:
            self.pretrained.move_to(self.dtype_ref.device)
        return self
