"""What results were measured on, and by which sources."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from . import ops
from .version import __version__

SOURCES = Path(__file__).resolve().parents[1]


def environment(device: str = "cpu") -> dict[str, str]:
    """What measurements on ``device`` depend on. Names no host, user or folder."""
    build = ops.build_info()
    of_gpu = {}
    if device == "cuda":
        of_gpu = {
            "gpu": torch.cuda.get_device_name(),
            "driver": told_by_driver("driver_version"),
            "clocks of SM, at most, of memory": told_by_driver("clocks.sm,clocks.max.sm,clocks.mem"),
            "cuda": str(torch.version.cuda),
        }
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "ceprop_cuda": __version__,
        "kernels": build["cpu_kernels"] if device == "cpu" else f"CUDA {build['cuda']}",
        "compiler": build["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        **of_gpu,
    }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def told_by_driver(fields: str) -> str:
    """What NVIDIA's driver says of these fields of the first GPU; "unknown" if its tool does not tell."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True)
    except OSError:  # no such tool
        return "unknown"
    return told.stdout.splitlines()[0] if told.returncode == 0 and told.stdout else "unknown"


def commit() -> str:
    """The commit of the sources that this package runs from, "-dirty" if they differ from it. Of sources without a
    repository what the environment variable COMMIT says, or "unknown"."""

    given = os.environ.get("COMMIT") or "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(SOURCES), *arguments], capture_output=True, text=True).stdout.strip()

    try:
        # An installed package may lie inside another project's repository.
        if not (SOURCES / ".git").exists():
            return given
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except OSError:  # no git
        return given
