"""How many threads a call gets: no more than can run, none after a fork, and no more than have something to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from kept_programs import object_of, program_of
from project import SUPPORT

import ceprop_cuda as cep
from ceprop_cuda import _C

# Prints a sum that depends on every state and parameter.
WORK = """
def work(seed):
    torch.manual_seed(seed)
    net = cep.mlp(64, 100, 10)  # small: torch itself hangs after a fork where it would take threads
    cep.CEP(net, 10, 5, 0.5, 0.05).step(torch.rand(200, 64), torch.arange(200) % 10)
    return sum(p.double().sum().item() for p in net.parameters())
"""


def run(program: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """As users run it: the tests' own setting is not there."""
    environment = {name: value for name, value in os.environ.items() if name != "CEPROP_CPU_OVERSUBSCRIBE"}
    program = f"import os, torch, ceprop_cuda as cep\nfrom ceprop_cuda import _C\n{WORK}{program}"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, env=environment
    )


def test_no_more_threads_than_the_process_may_use() -> None:
    assert 1 <= _C.allowed_threads() <= len(os.sched_getaffinity(0))
    done = run("""
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(64)
print(_C.allowed_threads(), [work(0) for _ in range(3)][-1])
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1"
    assert done.stderr.count("torch is set to 64 threads, this process may use 1 CPUs at once") == 1
    alone = run("torch.set_num_threads(1)\nprint(1, work(0))")
    assert done.stdout == alone.stdout
    assert alone.stderr == ""


def test_many_threads_are_no_trap() -> None:
    done = run("torch.set_num_threads(256)\nprint([work(0) for _ in range(200)][-1])")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_works() -> None:
    done = run("""
import multiprocessing
torch.set_num_threads(2)
here = work(1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map_async(work, [0, 1]).get(30)
print(here == there[1], there[0] != there[1])
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
    assert "this process was forked from one that had used threads" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_works_on_a_graph() -> None:
    """By PyTorch's own operators, which would wait for threads that are not there."""
    done = run("""
torch.set_num_threads(2)
net = cep.graph([("input", "a", torch.nn.Conv2d(2, 8, 3, padding=1)), ("a", "b", torch.nn.Conv2d(8, 8, 3, padding=1)),
    ("input", "b", torch.nn.Conv2d(2, 8, 1)), ("b", "out", torch.nn.Linear(512, 4))], input_shape=(2, 8, 8),
    output="out").double()
x = torch.rand(200, 2, 8, 8).double()
torch.rand(500, 500) @ torch.rand(500, 500)
states = net.relax(x, 4)
child = os.fork()
if child == 0:
    found = net.relax(x, 4)
    torch.set_num_threads(1)
    print(all(torch.allclose(a, b) for a, b in zip(found, states)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
""")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_number_of_threads_changes_no_bits() -> None:
    sums = {run(f"torch.set_num_threads({count})\nprint(work(2))").stdout for count in (1, 2)}
    assert len(sums) == 1
    assert len(cep.mlp(784, 256, 10).layers) == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_sleep_at_a_barrier_are_woken(workers: int) -> None:
    """Else this never ends. Seen once, with a barrier that left it to std::atomic who sleeps and who is woken."""
    flags = ("-std=c++20", "-O2", "-fopenmp", "-pthread")
    program = program_of("barriers", object_of(SUPPORT / "barriers.cpp", *flags), "-fopenmp", "-pthread")
    done = subprocess.run([program, str(workers), "10000"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{workers * 10000}\n"
