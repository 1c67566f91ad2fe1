"""How many threads compute, by the size of what is computed."""

import os
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cadenza.system.system import System

SMALL = 50_000_000  # parameters; `starter` has 15 million: 4.3 times real time with one thread, 2.4 with two


def choose_threads(system: "System") -> None:
    """One thread for a small model on a CPU: its matrices are done before a second one has woken up."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and system.device.type in ("cpu", "meta"):
        if sum(weight.numel() for weight in chain(system.parameters(), system.buffers())) < SMALL:
            torch.set_num_threads(1)
