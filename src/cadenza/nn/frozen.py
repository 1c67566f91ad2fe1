"""Pretrained networks beside a module: read when first needed, moved with it and never cast."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from cadenza.core.pretrained import Pretrained

Network = TypeVar("Network", bound=nn.Module)


class Borrowed(ABC, Generic[Network]):
    """The network that a spec names by `model` and `revision`; copies share it, other processes read their own."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.source = Pretrained(spec.model, spec.revision)
        self._frozen: Network | None = None

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
            with torch.device("cpu"):
                self._frozen = self.build().requires_grad_(False)
        self.follow(device)
        return self._frozen

    def size(self) -> int:
        """Bytes of its weights, which are not read for that; 0 once they are."""
        if self._frozen is not None:
            return 0
        with torch.device("meta"):
            network = self.build()
        narrow = getattr(self.spec, "dtype", "fp32") == "bf16"
        return sum(x.numel() * (2 if narrow else x.element_size()) for x in network.state_dict().values())

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

    def outside(self) -> int:
        """Bytes of what is pretrained, not among the weights of the module, and still to be read."""
        return 0 if "encoder" in self._modules else self.pretrained.size()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        encoder = self._modules.pop("encoder", None)
        super()._apply(fn, recurse)
        if encoder is not None:
            encoder._apply(lambda x: fn(x) if fn(x.new_empty(0)).dtype == x.dtype else x.to(self.like.device))
            self._modules["encoder"] = encoder
        if not self.like.is_meta:
            self.pretrained.follow(self.like.device)
        return self
