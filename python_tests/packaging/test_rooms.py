"""The rooms of the package, from the ground up: no import points upwards, nor from a module to one that needs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from project import ROOT

PACKAGE = ROOT / "ceprop_cuda"
GROUND = "the ground floor"  # the modules of no folder
ROOMS = [
    "spec",  # what must be computed
    "arguments",
    "output",
    GROUND,  # what computes it, and what every room above may need
    "networks",
    "data",
    "run_directory",
    "training",
    "presets",
    "theorem",
    "bench",
    "reproduce",
    "cli",
    "the front door",  # __init__.py and __main__.py, which hand out what lies within
]
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    """The module's, relative to the package: "training.trainer"; of a package's own file "training"."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(file): file for file in FILES}


def room_of(module: str) -> str:
    if module in ("", "__main__"):
        return ROOMS[-1]
    first = module.split(".")[0]
    return first if (PACKAGE / first).is_dir() else GROUND


def imports_of(module: str) -> Iterator[str]:
    """The modules of the package that this one imports, wherever in its text."""
    file = MODULES[module]
    of_package = [
        part for part in (module if file.name == "__init__.py" else module.rpartition(".")[0]).split(".") if part
    ]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert name.name.split(".")[0] != "ceprop_cuda", f"{file} imports {name.name} by its whole name"
        if not isinstance(node, ast.ImportFrom):
            continue
        assert (node.module or "").split(".")[0] != "ceprop_cuda", f"{file} imports {node.module} by its whole name"
        if node.level:
            start = of_package[: len(of_package) - node.level + 1]
            target = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            for name in node.names:
                inner = f"{target}.{name.name}".strip(".")
                if inner in MODULES:
                    yield inner
                elif name.name != "_C":  # the compiled library
                    yield target


def test_every_folder_is_a_room_and_every_room_there() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_points_upwards(module: str) -> None:
    above = ROOMS[ROOMS.index(room_of(module)) + 1 :]
    upwards = [other for other in imports_of(module) if room_of(other) in above]
    assert not upwards, f"{module} lies in {room_of(module)!r}, below {', '.join(upwards)}"


def test_no_modules_import_each_other_in_a_ring() -> None:
    order = TopologicalSorter({module: set(imports_of(module)) - {module} for module in MODULES})
    order.prepare()  # raises CycleError
