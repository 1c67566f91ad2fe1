"""Processes, device and precision of a run, by accelerate."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cadenza.core.errors import TrainingError
from cadenza.training.optim import OptimizerGroup


class DistributedContext:
    """Rank, number of processes and device, as set by `accelerate launch`.

    Modules are not wrapped, so that a task can call any method; gradients are averaged over the processes once a step,
    after all micro-batches of a group.
    """

    def __init__(self, precision: Literal["fp32", "bf16", "fp16"] = "fp32", *, cpu: bool = False) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise TrainingError('training needs accelerate; install it with: pip install -e ".[train]"') from None
        cpu = cpu or not torch.accelerator.is_available()  # by default, accelerate starts one process per CPU
        self.accelerator = Accelerator(cpu=cpu)  # without precision: two Accelerators of different precision raise
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.processes: int = self.accelerator.num_processes
        self.main: bool = self.accelerator.is_main_process
        if precision == "fp16" and self.device.type == "cpu":
            raise TrainingError("precision: fp16 needs a GPU; on this machine choose bf16 or fp32")
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor, group: OptimizerGroup) -> None:
        """Add the gradient of a loss to the parameters of one group only."""
        self.accelerator.backward(group.scaler.scale(loss), inputs=list(group.parameters.values()))

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return self.accelerator.reduce(values, "mean") if self.processes > 1 else values  # type: ignore[return-value]

    @torch.no_grad()
    def all_reduce_gradients(self, group: OptimizerGroup) -> None:
        """Replace gradients by their mean over the processes; a parameter that no process used has none."""
        if self.processes == 1:
            return
        parameters = list(group.parameters.values())
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        for bucket in _buckets([p for p, n in zip(parameters, self.all_reduce_mean(used).tolist(), strict=True) if n > 0]):
            for p in bucket:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = self.all_reduce_mean(torch.cat([p.grad.flatten() for p in bucket if p.grad is not None]))
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = part.view_as(p)

    @torch.no_grad()
    def broadcast(self, modules: Iterable[nn.Module], *, buffers_only: bool = False) -> None:
        """Copy weights and buffers of process 0 to all processes."""
        if self.processes == 1:
            return
        from accelerate.utils import broadcast

        for module in modules:
            for x in module.buffers() if buffers_only else module.state_dict().values():
                x.copy_(broadcast(x.detach().clone()))  # type: ignore[arg-type]

    def gather(self, value: Any) -> list[Any]:
        """Return plain data of every process, in order."""
        from accelerate.utils import gather_object

        return gather_object([value])

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def to_device(self, batch: Any) -> Any:
        """Move tensors and objects with `to` to this process's device, inside mappings, sequences and dataclasses."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if hasattr(batch, "to"):
            return batch.to(self.device)
        if isinstance(batch, Mapping):
            return {key: self.to_device(value) for key, value in batch.items()}
        if is_dataclass(batch) and not isinstance(batch, type):
            return replace(batch, **{f.name: self.to_device(getattr(batch, f.name)) for f in fields(batch) if f.init})
        if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
            return type(batch)(self.to_device(value) for value in batch)
        return batch


def _buckets(parameters: list[nn.Parameter], max_numel: int = 2**23) -> list[list[nn.Parameter]]:
    """Return consecutive parameters of one dtype in buckets of at most `max_numel` elements, to reduce in few messages."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        if not buckets or size + p.numel() > max_numel or buckets[-1][0].dtype != p.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel()
    return buckets
