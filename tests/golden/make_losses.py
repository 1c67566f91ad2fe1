"""Copies the part of conformance case 12 that a clone without the kit is tested with: make_losses.py KIT."""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

kit = next(Path(sys.argv[1]).glob("12*"))
here = Path(__file__).parent
expected = load_file(kit / "expected.safetensors")
keep = {name: x for name, x in expected.items() if name in {"x", "y"} or x.numel() == 1}
save_file(keep, here / "losses.safetensors")
