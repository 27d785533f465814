"""Lines "case,metric,value,unit" of what Nsight Compute wrote with `--csv --page raw`: `counters.py CASE FILE`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HEADER = ["case", "metric", "value", "unit"]
OF_THE_PROCESS = {"ID", "Process ID", "Process Name", "Host Name", "Context", "Stream", "Device", "CC"}


def counters(case: str, text: str) -> list[list[str]]:
    """None if the file holds no kernel. Numbers without the commas that group their digits."""
    table = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(table) < 3:
        return []
    names, units, *kernels = table
    return [
        [case, name, value.replace(",", "") if _is_number(value) else value, unit]
        for kernel in kernels
        for name, value, unit in zip(names, kernel, units, strict=True)
        if name not in OF_THE_PROCESS
    ]


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).isdigit()


def main() -> None:
    case, file = sys.argv[1:]
    found = counters(case, Path(file).read_text())
    if not found:
        sys.exit(f"{case}: the profiler saw no kernel")
    csv.writer(sys.stdout, lineterminator="\n").writerows(found)


if __name__ == "__main__":
    main()
