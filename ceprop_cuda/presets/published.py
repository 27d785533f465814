"""The settings of published experiments on MNIST and CIFAR-10, and those of ``ceprop train``'s default."""

from __future__ import annotations

from dataclasses import replace

from .preset import Convolutions, Preset

_P_2H = Preset(
    source="arXiv 1905.13633, P-2h",
    continual=False,
    hidden=(512, 512),
    free_steps=100,
    nudged_steps=20,
    beta=0.5,
    lr=(0.2, 0.05, 0.005),
    epochs=50,
)

DENSE = {
    "digits": Preset(
        source="C-EP on the bundled digits, for a first look",
        continual=True,
        hidden=(256,),
        free_steps=20,
        nudged_steps=10,
        beta=0.5,
        lr=(0.04, 0.02),
        epochs=40,
        batch_size=10,
        activation="hard_sigmoid",
        output_activation="linear",
        nudging="symmetric",
        data="digits",
    ),
    "eb-1h": Preset(
        source="arXiv 1905.13633, EB-1h",
        continual=False,
        hidden=(512,),
        free_steps=100,
        nudged_steps=12,
        beta=0.5,
        lr=(0.1, 0.05),
        epochs=30,
        dynamics="energy",
    ),
    "eb-2h": Preset(
        source="arXiv 1905.13633, EB-2h",
        continual=False,
        hidden=(512, 512),
        free_steps=400,
        nudged_steps=40,
        beta=0.5,
        lr=(0.4, 0.1, 0.01),
        epochs=50,
        dynamics="energy",
    ),
    "p-1h": Preset(
        source="arXiv 1905.13633, P-1h",
        continual=False,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.1,
        lr=(0.08, 0.04),
        epochs=30,
    ),
    "p-2h": _P_2H,
    "p-3h": Preset(
        source="arXiv 1905.13633, P-3h",
        continual=False,
        hidden=(512, 512, 512),
        free_steps=180,
        nudged_steps=20,
        beta=0.5,
        lr=(0.2, 0.05, 0.01, 0.002),
        epochs=100,
    ),
    "ep-1h": Preset(
        source="arXiv 2005.04168, EP-1h",
        continual=False,
        hidden=(512,),
        free_steps=30,
        nudged_steps=10,
        beta=0.1,
        lr=(0.08, 0.04),
        epochs=30,
    ),
    "ep-2h": replace(_P_2H, source="arXiv 2005.04168, EP-2h"),
    "c-ep-1h": Preset(
        source="arXiv 2005.04168, C-EP-1h",
        continual=True,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.2,
        lr=(0.0056, 0.0028),
        epochs=100,
    ),
    "c-ep-2h": Preset(
        source="arXiv 2005.04168, C-EP-2h",
        continual=True,
        hidden=(512, 512),
        free_steps=100,
        nudged_steps=20,
        beta=0.5,
        lr=(0.01, 0.0018, 0.00018),
        epochs=150,
    ),
    "c-vf-1h": Preset(
        source="arXiv 2005.04168, C-VF-1h",
        continual=True,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.2,
        lr=(0.0076, 0.0038),
        epochs=100,
        nudging="random_sign",
        feedback="free",
        gate="connection",
    ),
    "c-vf-2h": Preset(
        source="arXiv 2005.04168, C-VF-2h",
        continual=True,
        hidden=(512, 512),
        free_steps=100,
        nudged_steps=20,
        beta=0.35,
        lr=(0.009, 0.0016, 0.00016),
        epochs=150,
        nudging="random_sign",
        feedback="free",
    ),
}

_P_CONV = Preset(
    source="arXiv 1905.13633, P-conv",
    continual=False,
    hidden=(),
    convolutions=Convolutions(channels=(32, 64), kernels=5, paddings=0, pools="mm"),
    free_steps=200,
    nudged_steps=10,
    beta=0.4,
    lr=(0.15, 0.035, 0.015),
    epochs=40,
    activation="hard_sigmoid",
)

# One nudge as large as P-conv's errs by much; two of opposite signs err by less, and the same rates learn better.
_EP_CONV = replace(
    _P_CONV,
    source="EP on the network of P-conv, nudged both ways, asynchronous",
    free_steps=100,
    nudged_steps=5,
    nudging="symmetric",
    schedule="asynchronous",
    tolerance=1e-3,
)

_CIFAR10_MSE = Preset(
    source="arXiv 2006.03824, squared error",
    continual=False,
    hidden=(),
    convolutions=Convolutions(channels=(128, 256, 512, 512), kernels=3, paddings=(1, 1, 1, 0), pools="mmmm"),
    free_steps=250,
    nudged_steps=30,
    beta=0.5,
    lr=(0.25, 0.15, 0.1, 0.08, 0.05),
    epochs=120,
    batch_size=128,
    activation="half_hard_sigmoid",
    nudging="symmetric",
    nudge_at="drive",
    data="cifar10",
    augmented=True,
    momentum=0.9,
    weight_decay=3e-4,
    cosine_epochs=100,
)

CONVOLUTIONAL = {
    "p-conv": _P_CONV,
    "ep-conv": _EP_CONV,
    "c-ep-conv": replace(
        _EP_CONV,
        source="C-EP on the network of P-conv, as ep-conv with a twentieth of its rates",
        continual=True,
        lr=(0.0075, 0.00175, 0.00075),
    ),
    "cifar10-ep-mse": _CIFAR10_MSE,
    "cifar10-ep-ce": replace(
        _CIFAR10_MSE,
        source="arXiv 2006.03824, cross-entropy of a softmax readout",
        nudged_steps=25,
        beta=1.0,
        readout="softmax",
    ),
    # Forward and feedback weights are drawn apart; equal updates and weight decay bring them together.
    "cifar10-kp-vf": replace(
        _CIFAR10_MSE,
        source="arXiv 2006.03824, the same with free feedback and shared updates (Kolen-Pollack)",
        beta=1.0,
        readout="softmax",
        feedback="free",
        feedback_angle=None,
        shared_update=True,
    ),
}

PRESETS = {**DENSE, **CONVOLUTIONAL}
