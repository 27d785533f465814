"""The rows of the papers' tables: what is trained, and what was published of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """Errors in percent on MNIST, mean and standard deviation over runs."""

    test: float
    deviation: float | None = None
    train: float | None = None


@dataclass(frozen=True)
class Row:
    """A preset, and what differs from it."""

    preset: str
    published: Published | None = None
    bptt: bool = False
    angle: float | None = None  # degrees between free feedback and forward weights at the start; None: the preset's
    schedule: str | None = None  # None: the preset's
    nudging: str | None = None

    def options(self) -> list[str]:
        """Of ``ceprop train``."""
        rule = ["--rule", "bptt"] if self.bptt else []
        angle = [] if self.angle is None else ["--angle", f"{self.angle:g}"]
        schedule = [] if self.schedule is None else ["--schedule", self.schedule]
        nudging = [] if self.nudging is None else ["--nudging", self.nudging]
        return ["--preset", self.preset, *rule, *angle, *schedule, *nudging]


TRAINED = ("ep-1h", "ep-2h", "c-ep-1h", "c-ep-2h", "c-vf-1h", "c-vf-2h", "p-conv")

# arXiv 1905.13633 and 2005.04168; EP-1h and EP-2h are the latter's names.
ROWS = {
    "ep-1h": Row("ep-1h", Published(2.00, 0.13, 0.20)),
    "ep-2h": Row("ep-2h", Published(1.95, 0.10, 0.14)),
    "c-ep-1h": Row("c-ep-1h", Published(2.28, 0.16, 0.41)),
    "c-ep-2h": Row("c-ep-2h", Published(2.44, 0.14, 0.31)),
    "c-vf-1h": Row("c-vf-1h", Published(2.43, 0.08, 0.77)),
    "c-vf-2h": Row("c-vf-2h", Published(2.97, 0.19, 1.58)),
    "eb-1h": Row("eb-1h", Published(2.06, 0.17, 0.13)),
    "eb-2h": Row("eb-2h", Published(2.01, 0.21, 0.11)),
    "p-3h": Row("p-3h", Published(2.01, 0.18, 0.10)),
    "p-conv": Row("p-conv", Published(1.02, 0.04, 0.54)),
    "eb-1h-bptt": Row("eb-1h", Published(2.11), bptt=True),
    "eb-2h-bptt": Row("eb-2h", Published(2.02), bptt=True),
    "p-1h-bptt": Row("p-1h", Published(2.00), bptt=True),
    "p-2h-bptt": Row("p-2h", Published(2.09), bptt=True),
    "p-3h-bptt": Row("p-3h", Published(2.30), bptt=True),
    "p-conv-bptt": Row("p-conv", Published(0.88), bptt=True),
    # The papers have no numbers for these, or only a figure.
    "ep-1h-bptt": Row("ep-1h", bptt=True),
    "digits": Row("digits"),
    # As many steps, in which layers do not move at once: no sample oscillates.
    **{f"{name}-async": Row(name, schedule="asynchronous") for name in TRAINED},
    # Nudged by +beta and by -beta: the estimate errs by beta^2 where one nudge errs by beta.
    **{f"{name}-symmetric": Row(name, nudging="symmetric") for name in TRAINED},
    **{f"c-vf-1h-{angle:g}": Row("c-vf-1h", angle=angle) for angle in (0, 22.5, 45, 67.5, 90, 112.5, 135, 157.5, 180)},
}


def chosen_rows(names: str) -> dict[str, Row]:
    """The rows of these ``names``, comma-separated, in this order; ValueError if there is no such row."""
    wanted = [name for name in dict.fromkeys(names.split(",")) if name]
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows names unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return {name: ROWS[name] for name in wanted}
