"""What memory there is, read from files as Linux writes them."""

import pytest

from cadenza.core import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GiB available, of which this process holds 1 GiB; files are added by path."""
    monkeypatch.delenv(memory.LIMIT_VARIABLE, raising=False)

    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put(
        "proc/meminfo",
        "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n",
    )
    put("proc/self/status", "Name:\tpython\nVmPeak:\t 9000000 kB\nVmRSS:\t 1048576 kB\n")
    return tmp_path, put


def test_what_the_machine_has(machine):
    root, _ = machine
    assert memory.available_memory(root) == 8 * 2**30
    assert memory.process_rss(root) == 2**30


def test_a_container_of_the_second_kind(machine):
    root, put = machine
    put("proc/self/cgroup", "0::/app/job\n")
    put("sys/fs/cgroup/app/memory.max", str(4 * 2**30))
    put("sys/fs/cgroup/app/memory.current", str(3 * 2**30))
    put("sys/fs/cgroup/app/memory.stat", f"anon 1\ninactive_file {2**29}\n")
    put("sys/fs/cgroup/app/job/memory.max", "max\n")
    put("sys/fs/cgroup/app/job/memory.current", str(2**30))
    assert memory.available_memory(root) == 2**30 + 2**29  # what is left, and files that would make room


def test_a_container_of_the_first_kind(machine):
    root, put = machine
    put("proc/self/cgroup", "12:cpu,cpuacct:/x\n5:memory:/docker/a\n0::/\n")
    put("sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", str(2 * 2**30))
    put("sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes", str(2**30))
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")  # none
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", str(2**30))
    assert memory.available_memory(root) == 2**30


def test_a_container_that_is_larger_than_the_machine(machine):
    root, put = machine
    put("proc/self/cgroup", "0::/\n")
    put("sys/fs/cgroup/memory.max", str(64 * 2**30))
    put("sys/fs/cgroup/memory.current", "0")
    assert memory.available_memory(root) == 8 * 2**30


def test_a_limit_that_the_user_sets(machine, monkeypatch):
    root, _ = machine
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "3GiB")
    assert memory.available_memory(root) == 2 * 2**30  # one is taken
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "100 MB")
    assert memory.available_memory(root) == 0


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("4 gib", 4 * 2**30), ("512MiB", 2**29), ("1.5 k", 1500), ("1000", 1000), ("2T", 2e12)]
)
def test_amounts(text, size):
    assert memory.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "four GB", "4 parsecs", "-1GB", "0", "inf", "1e30", "nan"])
def test_no_amounts(text):
    with pytest.raises(ValueError, match="not (an|a possible) amount of memory"):
        memory.parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"), [(9.99e3, "10 kB"), (61.4e6, "61 MB"), (999.9e6, "1.00 GB"), (1.234e9, "1.23 GB"), (23.46e9, "23.5 GB")]
)
def test_shown(size, text):
    assert memory.format_bytes(size) == text
