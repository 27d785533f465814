"""The rules of this folder: a test file lies where it says what it needs, and imports no other test file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from project import ROOT

TESTS = ROOT / "python_tests"
FOLDERS = {"spec", "api", "cpu", "cuda_emulated", "cuda_device", "packaging", "experiments"}
FILES = sorted(TESTS.rglob("test_*.py"))


def imported_by(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_every_test_file_lies_in_one_of_the_folders() -> None:
    assert {file.parent for file in FILES} == {TESTS / folder for folder in FOLDERS}
    assert len({file.name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_test_file_imports_another(file: Path) -> None:
    assert not imported_by(file) & {other.stem for other in FILES}


def test_scripts_import_no_test_file() -> None:
    for file in (ROOT / "benchmarks").rglob("*.py"):
        assert not imported_by(file) & {other.stem for other in FILES}, file


def test_only_tests_on_a_gpu_lie_in_their_folder() -> None:
    for file in FILES:
        assert ("\npytestmark = pytest.mark.cuda\n" in file.read_text()) == (file.parent.name == "cuda_device"), file
