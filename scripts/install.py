"""Install Cadenza into the environment of the Python that runs this, with PyTorch's CPU build where that is enough.

    python scripts/install.py EXTRA [--lock constraints.txt] [--torch auto|cpu|cuda]

On Linux, the torch of PyPI requires about 3 GB of CUDA libraries. On a machine without an NVIDIA GPU, torch is therefore
installed from PyTorch's own index of CPU wheels first, if that index answers. Only the standard library is used.
"""

import argparse
import http.client
import importlib.metadata
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TIMEOUT = 3.0  # seconds
NVIDIA_PATHS = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"))


def has_nvidia_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is installed."""
    return shutil.which("nvidia-smi") is not None or any(path.exists() for path in NVIDIA_PATHS)


def is_reachable(index: str, timeout: float = TIMEOUT) -> bool:
    """Whether the package index answers for torch within `timeout` seconds, the look-up of its host included."""
    answers = []

    def request() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=timeout) as response:
                answers.append(response.status == 200)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    thread = threading.Thread(target=request, daemon=True)  # a look-up of a host has no timeout of its own
    thread.start()
    thread.join(timeout)
    return answers == [True]


def read_locked_version(lock: Path) -> str | None:
    """Return the version of torch in the lock."""
    match = re.search(r"^torch==(\S+)$", lock.read_text(), re.M)
    return match and match[1]


def read_installed_version() -> str | None:
    """Return the version of torch in this environment, without the name of its build."""
    try:
        return importlib.metadata.version("torch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def run_pip(*arguments: str) -> int:
    """Run pip in the folder of the project; return its exit status."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def install_cpu_torch(version: str | None, build: str, *, index: str = CPU_INDEX, pip: Callable[..., int] = run_pip) -> None:
    """Install torch of the version, or the newest, from the index of CPU wheels, if the build that is asked for calls for it.

    `build` is `auto`, `cpu` or `cuda`. A torch of the right version that is installed already is kept. Exits if the build is
    `cpu` and cannot be installed.
    """
    installed = read_installed_version()
    if build == "cuda" or (installed and installed == (version or installed)):
        return
    if build == "auto" and (sys.platform != "linux" or has_nvidia_gpu()):
        return
    requirement = f"torch=={version}" if version else "torch"
    # the packages that torch requires come from pip's usual index, in the versions of the lock
    if is_reachable(index) and pip("install", "--quiet", "--no-deps", "--index-url", index, requirement) == 0:
        return
    if build == "cpu":
        sys.exit(
            f"TORCH=cpu: {requirement} cannot be installed from {index}. Check the network, or use TORCH=cuda for pip's own."
        )
    print(
        f"{requirement} cannot be installed from {index}: installing pip's own, which may bring 3 GB of CUDA libraries",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Install Cadenza from this clone.")
    parser.add_argument("extra", help="the extra of pyproject.toml to install with it, such as fast or dev")
    parser.add_argument("--lock", type=Path, help="a file of exact versions; without it, the newest are installed")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="the build of PyTorch")
    options = parser.parse_args()
    install_cpu_torch(read_locked_version(options.lock) if options.lock else None, options.torch)
    constraints = ["-c", str(options.lock.resolve())] if options.lock else []
    return run_pip("install", "--quiet", *constraints, "-e", f".[{options.extra}]")


if __name__ == "__main__":
    sys.exit(main())
