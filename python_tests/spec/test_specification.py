"""The specification is by itself: PyTorch, and nothing of the package that has to agree with it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ceprop_cuda import spec

FILES = sorted(Path(spec.__file__).parent.glob("*.py"))
MAY_IMPORT = {"__future__", "collections", "dataclasses", "functools", "math", "operator", "torch", "typing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_imports_nothing_else_of_the_package(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= MAY_IMPORT
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.module or "").partition(".")[0] in MAY_IMPORT


def test_the_files_are_found() -> None:
    assert [path.stem for path in FILES] == ["__init__", "connections", "dynamics", "gates", "losses", "reference"]
