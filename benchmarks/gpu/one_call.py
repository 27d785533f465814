"""A few training steps of cases of `ceprop bench`, for a profiler to watch one of; prints the norm of their parameters.

On a GPU each is one launch of a kernel run_team where teams take the case, else PyTorch's operators; or as --engine
says.
"""

from __future__ import annotations

import argparse

import torch

from ceprop_cuda.bench.cases import chosen_cases
from ceprop_cuda.bench.contenders import ENGINES, by_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE", help="or a pattern")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", nargs=2, type=int, metavar=("FREE", "NUDGED"), help="instead of the preset's")
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto")
    arguments = parser.parse_args()
    for case in chosen_cases(arguments.cases, arguments.device):
        if arguments.steps is not None:
            case = case.of_steps(*arguments.steps)
        net, x, y = case.problem(torch.float32)
        step = by_engine(arguments.engine, case, net)
        for _ in range(arguments.calls):
            step(x, y)
        print(f"{case.name}: {sum(p.norm().item() for p in net.parameters()):.6g}")


if __name__ == "__main__":
    main()
