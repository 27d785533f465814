"""From data to figures, in well under a minute on a laptop: does EP follow the gradient, and does continual EP learn?

python examples/quickstart.py            # figures in quickstart/
python examples/quickstart.py elsewhere
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

import ceprop_cuda as cep
from ceprop_cuda import run_directory, theorem
from ceprop_cuda.data import load


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data = load("digits")  # handwritten, 8 x 8 pixels, part of the package

    # Any chain of Linear (or Conv2d and pooling) layers becomes a network that settles.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Linear(256, 10))

    # Settle, nudge weakly, and set every update beside the gradient that backpropagation through time finds there.
    exact = cep.Network(copy.deepcopy(model).double(), input_shape=(64,), activation="tanh")
    x, y = data.train_x[:20].double(), data.train_y[:20]
    comparison = theorem.compare(cep.EP(exact, free_steps=150, nudged_steps=10, beta=0.01), x, y)
    print(f"untrained: {comparison.angle:.2f} degrees between EP's summed updates and the gradient of BPTT")
    (folder / "ep_follows_bptt.png").write_bytes(theorem.courses(comparison, "64-256-10, tanh"))

    # Train: a free phase, then weights that move at every step of the nudged phase.
    net = cep.Network(model, input_shape=(64,), activation="hard_sigmoid", output_activation="linear")
    rule = cep.CEP(net, free_steps=20, nudged_steps=10, beta=0.5, lr=(0.04, 0.02), nudging="symmetric")
    history = cep.Trainer(rule).fit(data.train_batches(10), epochs=20, test=data.test_batches(500))
    (folder / "training.png").write_bytes(run_directory.curves(history))
    print(f"trained: {history[-1]['test_error']:.2f} % test error")
    print(f"figures: {folder / 'ep_follows_bptt.png'}, {folder / 'training.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default="quickstart", help="of the figures")
    main(parser.parse_args().folder)
