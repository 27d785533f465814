"""For `pytest -p poisoned`: before each test the GPU memory that torch will share out next is filled with NaN.

So that a result which a kernel should have written and did not is seen, whatever an earlier test left there.
torch.utils.deterministic.fill_uninitialized_memory would do it for every allocation, but acts only together with
torch.use_deterministic_algorithms, by which a library's convolutions take other algorithms than users get.
"""

from __future__ import annotations

import pytest
import torch

# torch takes memory from the driver in pieces of 2 MB for what has at most 1 MB, and larger ones for the rest.
SMALL, SMALL_PIECES, LARGE = 1 << 20, 32, 256 << 20


@pytest.fixture(autouse=True)
def poison() -> None:
    if not torch.cuda.is_available():
        return
    sizes = [SMALL] * SMALL_PIECES + [LARGE]
    pieces = [torch.full((size // 8,), torch.nan, dtype=torch.float64, device="cuda") for size in sizes]
    del pieces  # back to torch, which fills nothing when it gives them out again
