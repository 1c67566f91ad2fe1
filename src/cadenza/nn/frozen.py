"""Pretrained networks beside a module: read when first needed, moved with it and never cast."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from cadenza.core.checkpoint import CHUNK_BYTES, LazyTensor, check_state_dict, raise_if_not_finite
from cadenza.core.hub import ModelSource
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.weight_quantization import OUTPUTS, QuantizedLinear, named_linears, quantize_linears

Network = TypeVar("Network", bound=nn.Module)
_SCRATCH = 8 * CHUNK_BYTES  # bytes of a piece and of what is computed of it


class FrozenEncoder(ABC, Generic[Network]):
    """The network that a spec names by `model` and `revision`; copies share it, other processes read their own."""

    loads_per_tensor: ClassVar[bool] = False  # whether its weights become what is kept of them one by one, as they are read

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.source = ModelSource(spec.model, spec.revision)
        self._frozen: Network | None = None
        self._sizes: dict[tuple[bool, bool], int] = {}
        self.quantized = False  # whether the weights of its linear layers are kept in 8 bits

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.spec,)

    @abstractmethod
    def build(self) -> Network:
        """The network with its weights, read anew; on the meta device without them."""

    def build_resident(self) -> Network:
        """The network as it is kept while nothing trains it, its linear layers in 8 bits where it is `narrow`."""
        network = self.build()
        if self.quantized:
            quantize_linears(network, "int8")
        return network

    @property
    def cheap_to_reload(self) -> bool:
        """Whether reading it takes so little time that it need not be held while it is not used."""
        return False

    def unload(self) -> None:
        """Lets go of a light one on the CPU until it is needed again."""
        if self._frozen is not None and self.cheap_to_reload and next(self._frozen.parameters()).device.type == "cpu":
            self._frozen = None

    def get(self, device: torch.device) -> Network:
        """The frozen network, on a device."""
        if self._frozen is None:
            with torch.device("cpu"), torch.inference_mode(False):
                self._frozen = self.build_resident().requires_grad_(False)
        self.move_to(device)
        return self._frozen

    def unloaded_bytes(self, *, read: bool = False) -> int:
        """Bytes of its weights, which are not read for that, or at the worst moment of reading them; 0 once they are."""
        if self._frozen is not None:
            return 0
        if (self.quantized, read) not in self._sizes:
            self._sizes[self.quantized, read] = self._size(read)
        return self._sizes[self.quantized, read]

    def _size(self, read: bool) -> int:
        together = read and not self.loads_per_tensor
        with init_empty_weights():
            network = self.build() if together else self.build_resident()
        size = sum(x.numel() * x.element_size() for x in network.state_dict().values())
        return 2 * size if together else size + read * min(size, _SCRATCH)  # files, and the copies made of them

    def move_to(self, device: torch.device) -> None:
        """Moves the frozen network, if it has been needed."""
        if self._frozen is not None and next(self._frozen.parameters()).device != device:
            with torch.inference_mode(False):
                self._frozen.to(device)


def load_weights_streaming(
    network: nn.Module, weights: Mapping[str, LazyTensor], *, source: str, narrow: tuple[str, ...] | None = None
) -> None:
    """Reads the weights of a network that is on the meta device, piece by piece, as the dtypes that it has there.

    With `narrow` its linear layers become those of 8 bits and the tables that it names bfloat16, none of them ever whole
    in another form. CheckpointError, naming the `source`, unless they are the network's and finite.
    """
    check_state_dict(weights, network.state_dict(), source)
    if narrow is not None:
        quantize_on_meta(network, narrow)
    takes = {name: _putting(*_place(network, name)) for name in weights}  # all first, so that no gaps are left between them
    broken = []
    for name, record in weights.items():
        finite = torch.ones((), dtype=torch.bool)
        for at, x in record.iter_row_chunks(OUTPUTS):
            finite &= x.isfinite().all()
            takes[name](at, x)
        if not finite:
            broken.append(name)
    raise_if_not_finite(sorted(broken), source)


def quantize_on_meta(network: nn.Module, tables: tuple[str, ...]) -> None:
    """Gives a network on the meta device linear layers of 8 bits and bfloat16 for `tables`."""
    for name, part in named_linears(network):
        with torch.device("meta"):
            narrow = QuantizedLinear(part.in_features, part.out_features, kind="int8", bias=part.bias)
        setattr(*_place(network, name), narrow)
    for name in tables:
        owner, last = _place(network, name)
        setattr(owner, last, nn.Parameter(getattr(owner, last).bfloat16()))


def _place(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that something is an attribute of, and how it is called there."""
    above, _, last = name.rpartition(".")
    return network.get_submodule(above), last


def _putting(owner: nn.Module, name: str) -> Callable[[int, Tensor], None]:
    """What takes the rows of a weight from some row on; the weight is made here."""
    if isinstance(owner, QuantizedLinear) and name == "weight":
        owner.packed, owner.scale = (_empty(x) for x in (owner.packed, owner.scale))
        return partial(_quantized, owner)
    there = getattr(owner, name)
    made = _empty(there)
    setattr(owner, name, nn.Parameter(made) if isinstance(there, nn.Parameter) else made)

    def put(at: int, x: Tensor) -> None:
        (made[at : at + len(x)] if x.ndim else made).copy_(x)

    return put


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cpu")


def _quantized(whole: QuantizedLinear, at: int, rows: Tensor) -> None:
    with torch.device("meta"):
        linear = nn.Linear(whole.in_features, len(rows), bias=False)
    linear.weight = nn.Parameter(rows, requires_grad=False)
    part = QuantizedLinear.from_linear(linear, "int8")
    tile = at // OUTPUTS
    whole.packed[tile : tile + len(part.packed)] = part.packed
    whole.scale[at : at + len(part.scale)] = part.scale


class FrozenEncoderMixin(nn.Module):
    """Moves what is pretrained with itself: `pretrained`, and `encoder` where that is trained; neither is ever cast.

    `like` is an empty buffer that says where and in which dtype the module computes.
    """

    pretrained: Any  # Borrowed
    dtype_ref: Tensor

    def quantize_frozen_(self) -> None:
        self.pretrained.quantized = True

    def unload(self) -> None:
        self.pretrained.unload()

    def unloaded_bytes(self) -> int:
        """Bytes of what is pretrained, not among the weights of the module, and still to be read."""
        return 0 if "encoder" in self._modules else self.pretrained.unloaded_bytes()

    def peak_loading_bytes(self) -> int:
        """Bytes at the worst moment of reading it."""
        return 0 if "encoder" in self._modules else self.pretrained.unloaded_bytes(read=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        encoder = self._modules.pop("encoder", None)
        super()._apply(fn, recurse)
        if encoder is not None:
            encoder._apply(lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(self.dtype_ref.device))
            self._modules["encoder"] = encoder
        if not self.dtype_ref.is_meta:
            self.pretrained.move_to(self.dtype_ref.device)
        return self
