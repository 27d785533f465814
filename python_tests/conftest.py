"""What tests share: a fixed seed, instruction sets, numbers of threads, and the `cuda` marker for those on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch: OpenMP reads it once. Threads that wait for each other after each small operation of the reference give
# their core away; spinning costs twenty times the operations' own time where anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The numbers of threads that tests ask for are taken, however little there is to do: they are what is tested.
os.environ.setdefault("CEPROP_CPU_OVERSUBSCRIBE", "1")

import pytest
import torch

from ceprop_cuda import ops

# Failures in shared checks show their values, too.
pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "support").iterdir()))


# Files whose tests take up to a minute each. They come first: a worker that begins one last leaves the others idle.
SLOWEST = (
    *("test_packaging.py", "test_sanitizers.py", "test_headers.py", "test_quickstart.py"),
    *("test_kills.py", "test_killed_runs.py", "test_reproduce.py", "test_gpu_run.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: runs on a CUDA GPU; skipped where there is none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOWEST)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, torch sees none")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ops.build_info()["cpu_kernels_runnable"].split(", "))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this machine runs."""
    monkeypatch.setenv("CEPROP_CPU_CAPABILITY", request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads of this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: Callable[[int], None]) -> None:
    """For many small convolutions through torch: on two threads they take as long, with other load twenty times."""
    threads(1)
