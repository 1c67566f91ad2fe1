"""Which build of PyTorch is installed, and from where."""

import http.server
import importlib.util
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(monkeypatch):
    """The script, on a Linux machine without a GPU and without torch."""
    description = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(module, "read_installed_version", lambda: None)
    return module


@pytest.fixture
def index():
    """The address of a package index that knows torch."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/cpu"
        server.shutdown()


class Pip:
    """Records the calls of pip and returns one exit status."""

    def __init__(self, status=0):
        self.status, self.calls = status, []

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return self.status


@pytest.fixture
def silent_address():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/cpu"


@pytest.fixture
def closed_address():
    """An address that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}/cpu"


def test_an_index_is_reachable_only_if_it_knows_torch(install, index, closed_address):
    assert install.is_reachable(index)
    assert not install.is_reachable(f"{index}/nothing")
    assert not install.is_reachable(closed_address)


def test_an_index_that_does_not_answer_is_given_up_in_time(install, silent_address, monkeypatch):
    start = time.monotonic()
    assert not install.is_reachable(silent_address, timeout=0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))  # a slow look-up of the host
    assert not install.is_reachable("http://index.invalid/cpu", timeout=0.2)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("build", ["auto", "cpu"])
@pytest.mark.parametrize(("version", "requirement"), [("2.13.0", "torch==2.13.0"), (None, "torch")])
def test_the_wheel_for_cpus_is_installed_without_a_gpu(install, index, build, version, requirement, capsys):
    pip = Pip()
    install.install_cpu_torch(version, build, index=index, pip=pip)
    (call,) = pip.calls
    assert call[-1] == requirement and "--no-deps" in call and call[call.index("--index-url") + 1] == index
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("build", ["auto", "cuda"])
def test_the_index_is_not_asked_where_pips_own_torch_is_right(install, index, build, monkeypatch):
    if build == "auto":
        monkeypatch.setattr(install, "has_nvidia_gpu", lambda: True)
    pip = Pip()
    install.install_cpu_torch("2.13.0", build, index=index, pip=pip)
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    install.install_cpu_torch("2.13.0", "auto", index=index, pip=pip)
    assert pip.calls == []


def test_a_torch_that_fits_is_kept_and_another_is_replaced(install, index, monkeypatch):
    monkeypatch.setattr(install, "read_installed_version", lambda: "2.13.0")
    pip = Pip()
    for version, build in (("2.13.0", "auto"), ("2.13.0", "cpu"), (None, "auto")):
        install.install_cpu_torch(version, build, index=index, pip=pip)
    assert pip.calls == []
    install.install_cpu_torch("2.14.0", "auto", index=index, pip=pip)
    assert pip.calls[0][-1] == "torch==2.14.0"


def test_without_the_index_auto_says_so_in_one_line_and_cpu_fails(install, index, closed_address, capsys):
    for address, pip in ((closed_address, Pip()), (index, Pip(status=1))):
        install.install_cpu_torch("2.13.0", "auto", index=address, pip=pip)
        (line,) = capsys.readouterr().out.splitlines()
        assert "torch==2.13.0" in line and address in line and "3 GB" in line
        with pytest.raises(SystemExit, match="TORCH=cpu: torch==2.13.0 cannot be installed"):
            install.install_cpu_torch("2.13.0", "cpu", index=address, pip=pip)


def test_an_nvidia_driver_is_found_by_its_program_or_its_files(tmp_path, monkeypatch):
    description = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "NVIDIA_PATHS", (tmp_path / "nvidia0",))
    assert not module.has_nvidia_gpu()
    (tmp_path / "nvidia0").touch()
    assert module.has_nvidia_gpu()
    (tmp_path / "nvidia0").unlink()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert module.has_nvidia_gpu()
