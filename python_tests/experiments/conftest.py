"""What the tests of experiments share."""

from __future__ import annotations

import pytest

from ceprop_cuda.bench.contenders import CONTENDERS


@pytest.fixture
def without_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes longer than all other tests of `ceprop bench`."""
    monkeypatch.delitem(CONTENDERS, "compile")
