"""The memory that the kernels keep from call to call does not grow with the number of calls: see csrc/cpu/memory.h."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ceprop_cuda

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

MEGABYTE = 1 << 20

# Calls on networks of weights (units, units) of 4 to 20 MB, none of a size seen before, or of 80 MB, more than is kept;
# in one thread, or each in a thread of its own. Prints how much more memory is resident after them than before.
PROGRAM = """
import os, sys, threading
from pathlib import Path
import torch
from ceprop_cuda import ops
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def call(units):
    weights = [torch.zeros(units, 4), torch.zeros(units, units)]
    ops.relax(Circuit(weights, [None, None], None, Dynamics(), chain(2)), torch.zeros(1, 4), 1)

def call_in_a_thread(units):
    thread = threading.Thread(target=call, args=(units,))
    thread.start()
    thread.join()

torch.set_num_threads(1)
call(16)
calls, first, step, is_alone = map(int, sys.argv[1:])
before = resident()
for number in range(calls):
    (call_in_a_thread if is_alone else call)(first + number * step)
print(resident() - before)
"""


@pytest.mark.parametrize(
    ("calls", "first", "step", "in_threads"),
    [(60, 1000, 20, False), (12, 4500, 16, False), (40, 1000, 20, True)],
    ids=["many sizes", "more than is kept", "many threads"],
)
def test_many_calls_of_other_sizes_keep_no_more_memory(calls: int, first: int, step: int, in_threads: bool) -> None:
    # What free() gets goes back to the system at once, and not into malloc's own store.
    package = str(Path(ceprop_cuda.__file__).parents[1])
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": package}
    command = [sys.executable, "-c", PROGRAM, *map(str, (calls, first, step, int(in_threads)))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    assert grown < (64 + 32) * MEGABYTE, f"{grown / MEGABYTE:.0f} MB more"
