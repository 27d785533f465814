"""What every test shares: a fixed seed, and the `cuda` marker for tests that need a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.register_assert_rewrite("training_runs")  # failures in shared checks show their values, too


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: runs on a CUDA GPU; skipped where there is none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, torch sees none")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
