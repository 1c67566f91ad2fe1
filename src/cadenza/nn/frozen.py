"""Pretrained networks beside a module: read when first needed, moved with it and never cast."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from cadenza.core.pretrained import Pretrained
from cadenza.nn.quantized import quantize

Network = TypeVar("Network", bound=nn.Module)


class Borrowed(ABC, Generic[Network]):
    """The network that a spec names by `model` and `revision`; copies share it, other processes read their own."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.source = Pretrained(spec.model, spec.revision)
        self._frozen: Network | None = None
        self._sizes: dict[tuple[bool, bool], int] = {}
        self.narrow = False  # whether the weights of its linear layers are kept in 8 bits

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.spec,)

    @abstractmethod
    def build(self) -> Network:
        """The network with its weights, read anew."""

    def on(self, device: torch.device) -> Network:
        """The frozen network, on a device."""
        if self._frozen is None:
            with torch.device("cpu"), torch.inference_mode(False):
                self._frozen = self.build().requires_grad_(False)
                if self.narrow:
                    quantize(self._frozen, "int8")
        self.follow(device)
        return self._frozen

    def size(self, *, read: bool = False) -> int:
        """Bytes of its weights, which are not read for that, or at the worst moment of reading them; 0 once they are."""
        if self._frozen is not None:
            return 0
        if (self.narrow, read) not in self._sizes:
            self._sizes[self.narrow, read] = self._size(read)
        return self._sizes[self.narrow, read]

    def _size(self, read: bool) -> int:
        with torch.device("meta"):
            network = self.build()
            if self.narrow and not read:
                quantize(network, "int8")
        half = getattr(self.spec, "dtype", "fp32") == "bf16"
        each = [x.numel() * (2 if half and x.is_floating_point() else x.element_size()) for x in network.state_dict().values()]
        return sum(each) * (2 if read else 1)  # files, and the copies made of them

    def follow(self, device: torch.device) -> None:
        """Moves the frozen network, if it has been needed."""
        if self._frozen is not None and next(self._frozen.parameters()).device != device:
            with torch.inference_mode(False):
                self._frozen.to(device)


class Borrower(nn.Module):
    """Moves what is pretrained with itself: `pretrained`, and `encoder` where that is trained; neither is ever cast.

    `like` is an empty buffer that says where and in which dtype the module computes.
    """

    pretrained: Any  # Borrowed
    like: Tensor

    def narrow(self) -> None:
        self.pretrained.narrow = True

    def outside(self) -> int:
        """Bytes of what is pretrained, not among the weights of the module, and still to be read."""
        return 0 if "encoder" in self._modules else self.pretrained.size()

    def reading(self) -> int:
        """Bytes at the worst moment of reading it."""
        return 0 if "encoder" in self._modules else self.pretrained.size(read=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        encoder = self._modules.pop("encoder", None)
        super()._apply(fn, recurse)
        if encoder is not None:
            encoder._apply(lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(self.like.device))
            self._modules["encoder"] = encoder
        if not self.like.is_meta:
            self.pretrained.follow(self.like.device)
        return self
